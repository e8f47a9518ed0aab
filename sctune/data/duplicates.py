"""One picture twice: byte-identical files, and near-identical pictures (re-encoded, resized, brightened)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from sctune.data.catalog import DataSet
from sctune.data.digests import file_digest, file_digests
from sctune.data.facts import difference_hashes
from sctune.errors import DataError

MOST_BITS = 20
"""Bits of 256 in which the difference hashes of two pictures that are compared closer may differ."""
BANDS = 16
"""Above BRUTE pictures, only those are compared that share one of so many parts of their hashes."""
BRUTE = 20_000
SMOOTH = 5
ALIKE = 0.993
"""Correlation of the fine structure from which on two small pictures are called one.

On ELPV the most similar pair of different cells (neighbours cut from one crystal) has .992; most copies that were saved
again, resized to 60 % or brightened have more. A copy that is cut is not found.
"""
COMMON = 200
"""Pictures whose mean is taken out first: bus bars and backgrounds are alike in all of them."""


def identical(root: Path, paths: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of two or more files with the same bytes, sorted; raises DataError for files that cannot be read."""
    groups = defaultdict(list)
    for path, digest in file_digests(root, paths).items():
        groups[digest].append(path)
    return sorted(tuple(group) for group in groups.values() if len(group) > 1)


def kept_together(data: DataSet) -> DataSet:
    """Identical files as one source unit, so that no split puts them into two pools (`data.allow_duplicates`).

    Raises DataError where one picture is labelled normal and anomalous.
    """
    files = {file.path: file for file in data.files}
    unit = {file.group: file.group for file in data.files}

    def first(name: str) -> str:
        while unit[name] != name:
            name = unit[name]
        return name

    for group in identical(data.root, files):
        if len({files[path].label for path in group}) > 1:
            raise DataError(contradiction(data.root, group))
        names = sorted({first(files[path].group) for path in group})
        unit.update(dict.fromkeys(names, names[0]))
    return replace(data, files=tuple(replace(file, group=first(file.group)) for file in data.files))


def contradiction(root: Path, group: Sequence[str]) -> str:
    return (
        f"{root}: {group[0]} and {group[1]} are the same file under two labels, normal and anomalous; keep the one "
        "that is right"
    )


def near_identical(root: Path, thumbs: Mapping[str, NDArray[np.uint8]]) -> list[tuple[str, str]]:
    """Pairs of paths whose pictures are one and whose files are not, sorted; thumbs: path -> `ImageFacts.thumb`."""
    paths = sorted(thumbs)
    if len(paths) < 2:
        return []
    small = np.stack([thumbs[path] for path in paths])
    pairs = _candidates(difference_hashes(small))
    if not pairs:
        return []
    some = np.random.RandomState(0).permutation(len(paths))[:COMMON].tolist()
    structure = {row: _structure(small[row]) for row in sorted({*some, *(row for pair in pairs for row in pair)})}
    common = np.mean([structure[row] for row in some], axis=0)
    # of a handful of pictures the mean is mostly the pictures themselves
    length = float(common @ common) if len(some) >= COMMON // 10 else 0.0
    if length > 0:
        structure = {row: own - common * float(own @ common) / length for row, own in structure.items()}
    alike = [(paths[a], paths[b]) for a, b in pairs if _correlation(structure[a], structure[b]) >= ALIKE]
    return [(a, b) for a, b in alike if file_digest(root / a) != file_digest(root / b)]


def _candidates(hashes: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Pairs of rows of hashes [N, 32] that differ in few bits."""
    if len(hashes) <= BRUTE:
        rows: Iterable[NDArray[np.int64]] = [np.arange(len(hashes))]
    else:
        rows = _buckets(hashes)
    found: set[tuple[int, int]] = set()
    for bucket in rows:
        bits = np.unpackbits(hashes[bucket], axis=1).astype(np.float32)
        for start in range(0, len(bits), 1024):
            part = bits[start : start + 1024]
            # bits that one has and not the other
            differing = part.sum(axis=1)[:, None] + bits.sum(axis=1) - 2 * (part @ bits.T)
            for a, b in zip(*np.nonzero(differing <= MOST_BITS), strict=True):
                if start + a < b:
                    found.add((int(bucket[start + a]), int(bucket[b])))
    return sorted(found)


def _buckets(hashes: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    parts = hashes.reshape(len(hashes), BANDS, -1)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for row, bands in enumerate(parts):
        for band, part in enumerate(bands):
            buckets[band, part.tobytes()].append(row)
    return [np.array(rows) for rows in buckets.values() if len(rows) > 1]


def _structure(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What is left of a grey picture without its smooth part, as a vector of length 1: brightness does not count."""
    values = grey.astype(np.float32)
    fine = (values - uniform_filter(values, SMOOTH, mode="nearest")).reshape(-1)
    fine -= fine.mean()
    return np.asarray(fine / max(float(np.linalg.norm(fine)), 1e-6), np.float32)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b) / max(float(np.linalg.norm(a)) * float(np.linalg.norm(b)), 1e-9)
