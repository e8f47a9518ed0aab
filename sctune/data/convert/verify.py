"""`sctune data verify`: a prepared folder against its manifest."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sctune.data.convert.raw import some
from sctune.data.convert.writer import CHUNK, THREADS, Progress
from sctune.data.images import file_digest
from sctune.data.manifest import MANIFEST, Manifest, read_manifest
from sctune.data.places import absolute
from sctune.data.walk import SUFFIXES
from sctune.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One kind of problem: `missing`, `missing masks`, `changed`, `extra` or `counts`, and the files or numbers."""

    kind: str
    names: tuple[str, ...]

    @property
    def line(self) -> str:
        """For people: how many, and the first few."""
        texts = {
            "missing": "missing images",
            "missing masks": "missing masks",
            "changed": "files with another content than when they were made",
            "extra": f"files that {MANIFEST} does not name",
            "counts": "other numbers of images",
        }
        return f"{texts[self.kind]} ({len(self.names)}): {some(self.names)}"


@dataclass(frozen=True)
class Verification:
    """What was found: checked counts the files that were hashed, problems are empty for a sound folder."""

    folder: Path
    manifest: Manifest
    checked: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(folder: Path, progress: Progress | None = None) -> Verification:
    """Hash every file of a folder that `prepare` made, and compare names, contents and counts with its manifest.

    progress: called with files done and of all. Raises DataError for a folder that is unfinished, has no manifest or
    cannot be listed.
    """
    folder = absolute(folder)
    manifest = read_manifest(folder)
    images = {record.path: record.sha256 for record in manifest.files}
    masks = {record.mask: record.mask_sha256 for record in manifest.files if record.mask}
    present = _present(folder)
    known = {path: digest for path, digest in {**images, **masks}.items() if path in present}
    changed = []
    with ThreadPoolExecutor(THREADS) as pool:
        names = sorted(known)
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            digests = pool.map(lambda name: file_digest(folder / name), chunk)
            changed += [name for name, digest in zip(chunk, digests, strict=True) if digest != known[name]]
            if progress:
                progress(start + len(chunk), len(names))
    found = {
        "missing": sorted(images.keys() - present),
        "missing masks": sorted(masks.keys() - present),
        "changed": changed,
        "extra": sorted(present - images.keys() - masks.keys() - {MANIFEST}),
        "counts": _count_differences(manifest, present),
    }
    problems = tuple(Problem(kind, tuple(texts)) for kind, texts in found.items() if texts)
    return Verification(folder, manifest, len(names), problems)


def _present(folder: Path) -> set[str]:
    """Visible files below the folder, relative to it."""

    def refuse(problem: OSError) -> None:
        raise DataError(f"cannot list {problem.filename}: {problem.strerror}; allow reading it and verify again")

    found = set()
    for place, below, names in os.walk(folder, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        prefix = Path(place).relative_to(folder)
        found |= {(prefix / name).as_posix() for name in names if not name.startswith(".")}
    return found


def _count_differences(manifest: Manifest, present: set[str]) -> list[str]:
    paths = (PurePosixPath(name) for name in present if name.lower().endswith(SUFFIXES))
    counted = Counter(path.parent.as_posix() for path in paths if "ground_truth" not in path.parts)
    folders = sorted(counted.keys() | manifest.counts.keys())
    return [
        f"{place} {counted[place]} instead of {manifest.counts.get(place, 0)}"
        for place in folders
        if counted[place] != manifest.counts.get(place, 0)
    ]
