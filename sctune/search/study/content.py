"""Whether a study's images still hold what they held when it began; their names are compared by the splits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from sctune.data.digests import data_digest, file_digests, joined_digest
from sctune.data.split import Split
from sctune.errors import ChangedDataError, StudyError
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.study import write_json

FILES = "files.json"
"""In the study's folder: {"format_version", "sets": [{path: first digits of its SHA-256}]}, to name what changed."""

FORMAT_VERSION = 1
DIGITS = 16


def content_digest(splits: Mapping[str, Split]) -> str:
    """SHA-256 over names and contents of the development files of all tasks, as the manifest keeps it."""
    return _joined(list(_digests(splits).values()))


def task_digests(splits: Mapping[str, Split]) -> dict[str, str]:
    """Task key -> SHA-256 over names and contents of its development files, which workers compare with theirs."""
    found = _digests(splits)
    return {name: found[_set(split)] for name, split in splits.items()}


def keep_files(folder: Path, splits: Mapping[str, Split]) -> None:
    """Write down, in the folder of a new study, what each of its images holds. Raises StudyError where it cannot."""
    sets = [
        {path: digest[:DIGITS] for path, digest in file_digests(root, paths).items()}
        for root, paths in file_sets(splits)
    ]
    try:
        write_json(folder / FILES, {"format_version": FORMAT_VERSION, "sets": sets})
    except OSError as problem:
        raise StudyError(f"cannot write {folder / FILES}: {problem.strerror}") from None


def check_content(manifest: StudyManifest, splits: Mapping[str, Split], folder: Path) -> None:
    """Raises ChangedDataError, which names the first such file, where images were changed since the study began.

    folder: of the study. Files that are as this machine saw them last are not read.
    """
    kept = _kept(folder)
    if kept is None and manifest.confirms is not None:
        # earlier versions left it the digest of the study that it confirms, which is checked itself
        return
    sets = file_sets(splits)
    now = [file_digests(root, paths) for root, paths in sets]
    if _joined([joined_digest(one) for one in now]) == manifest.data.digest:
        return
    changed = [
        root / path
        for (root, _), then, here in zip(sets, kept or (), now, strict=False)
        for path, digest in here.items()
        if then.get(path) != digest[:DIGITS]
    ]
    which = f"{len(changed)} of {sum(map(len, now))}" if changed else "some"
    first = f", the first is {changed[0]}" if changed else ""
    raise ChangedDataError(
        f"{which} images of {manifest.data.name} were changed since study {manifest.name} began{first}; put back "
        "what they held, or start a new study"
    )


def _digests(splits: Mapping[str, Split]) -> dict[tuple[Path, tuple[str, ...]], str]:
    """Each set's digest: the one that was published with it, else of the files."""
    published = {_set(split): split.content for split in splits.values()}
    return {one: content or data_digest(*one) for one, content in published.items()}


def _set(split: Split) -> tuple[Path, tuple[str, ...]]:
    return split.root, tuple(file.path for file in split.development)


def file_sets(splits: Mapping[str, Split]) -> list[tuple[Path, tuple[str, ...]]]:
    """Root and development files of the tasks, each such set once, in the order of the tasks."""
    return list(dict.fromkeys(map(_set, splits.values())))


def _joined(digests: list[str]) -> str:
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


def _kept(folder: Path) -> list[dict[str, str]] | None:
    """What `keep_files` wrote; None where there is none: a study of an earlier version, or of another machine."""
    try:
        content = json.loads((folder / FILES).read_text(encoding="utf-8"))
        return [dict(one) for one in content["sets"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
