"""One picture twice: byte-identical files, and near-identical pictures (re-encoded, resized, brightened)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sctune.data.catalog import DataSet
from sctune.data.digests import file_digest, file_digests
from sctune.data.facts import difference_hashes
from sctune.errors import DataError

MOST_BITS = 20
"""Bits of 256 in which the difference hashes of two pictures that are compared closer may differ."""
BANDS = 16
"""Above BRUTE pictures, only those are compared that share one of so many parts of their hashes."""
BRUTE = 50_000
ROWS, TOGETHER = 64, 32
"""Pictures that are compared with all others at once: by their hashes, by their structure."""
SMOOTH = 5
UNLIKE = 1.2e-4
"""For each cell of a side, how much the correlation of the fine structure of two pictures may lack if they are one.

Of 40 cells .9952. The most similar pair of different ELPV images (neighbours cut from one crystal) has .9947 there,
.9939 of 48 cells and .9955 of 32; most copies that were saved again, resized to two thirds or brightened have more. A
copy that is cut is not found.
"""
LEAST = 1e-6
COMMON = 200
"""Pictures whose mean is taken out first: bus bars and backgrounds are alike in all of them."""
Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]
NO_PAIRS: Pairs = np.zeros((0, 2), np.int64)


def identical(digests: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Groups of two or more files with the same bytes, sorted; digests: path -> digest of the file."""
    groups = defaultdict(list)
    for path, digest in digests.items():
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

    for group in identical(file_digests(data.root, files)):
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
    if not len(pairs):
        return []
    some = np.random.RandomState(0).permutation(len(paths))[:COMMON]
    rows, places = np.unique(np.append(pairs.reshape(-1), some), return_inverse=True)
    structure = _structure(small[rows])
    common = structure[places[pairs.size :]].mean(axis=0)
    # of a handful of pictures the mean is mostly the pictures themselves
    if len(some) >= COMMON // 10:
        structure -= np.outer(structure @ common, common / max(float(common @ common), LEAST))
        structure /= _lengths(structure)
    alike = pairs[_correlations(structure, places[: pairs.size].reshape(-1, 2)) >= 1 - UNLIKE * small.shape[1]]
    named = [(paths[a], paths[b]) for a, b in alike]
    return [(a, b) for a, b in named if file_digest(root / a) != file_digest(root / b)]


def _candidates(hashes: Hashes) -> Pairs:
    """Pairs of rows of hashes [N, 4] that differ in few bits, sorted."""
    buckets = [np.arange(len(hashes))] if len(hashes) <= BRUTE else _buckets(hashes)
    found = [bucket[_close(hashes[bucket])] for bucket in buckets]
    return np.unique(np.concatenate(found), axis=0) if len(found) > 1 else found[0] if found else NO_PAIRS


def _close(hashes: Hashes) -> Pairs:
    """Pairs of rows that differ in few bits, word by word: each rules out nine of ten that are left."""
    words = np.ascontiguousarray(hashes.T)
    found = [NO_PAIRS]
    for start in range(0, len(hashes), ROWS):
        first, *others = words[:, start:]
        bits = np.bitwise_count(first[:ROWS, None] ^ first)
        a, b = np.divmod(np.flatnonzero(bits <= MOST_BITS), len(first))
        a, b = a[a < b], b[a < b]
        few = bits[a, b]
        for word in others:
            few = few + np.bitwise_count(word[a] ^ word[b])
            a, b, few = a[few <= MOST_BITS], b[few <= MOST_BITS], few[few <= MOST_BITS]
        found.append(np.stack([a, b], axis=1) + start)
    return np.concatenate(found)


def _buckets(hashes: Hashes) -> list[NDArray[np.int64]]:
    parts = hashes.view(np.uint8).reshape(len(hashes), BANDS, -1)
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for row, bands in enumerate(parts):
        for band, part in enumerate(bands):
            buckets[band, part.tobytes()].append(row)
    return [np.array(rows) for rows in buckets.values() if len(rows) > 1]


def _structure(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What is left of grey pictures [N, T, T] without their smooth parts, as vectors of length 1, float32 [N, T T].

    Brightness and contrast do not count.
    """
    values = grey.astype(np.float32)
    fine = (values - _smooth(_smooth(values, 1), 2)).reshape(len(grey), -1)
    fine -= fine.mean(axis=1, keepdims=True)
    return fine / _lengths(fine)


def _smooth(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The mean of SMOOTH neighbours along an axis of [N, T, T]; the last value goes on beyond the border."""
    half, side = SMOOTH // 2, values.shape[axis]
    wide = np.take(values, np.clip(np.arange(-half, side + half), 0, side - 1), axis=axis)
    total = np.zeros_like(values)
    for start in range(SMOOTH):
        total += wide[:, start : start + side] if axis == 1 else wide[:, :, start : start + side]
    return total / np.float32(SMOOTH)


def _lengths(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(LEAST))


def _correlations(structure: NDArray[np.float32], pairs: Pairs) -> NDArray[np.float32]:
    """Of pairs of rows, sorted by the first; some rows with all their partners at once, which is quicker than pairs."""
    found = []
    for start in range(0, len(structure), TOGETHER):
        low, high = np.searchsorted(pairs[:, 0], (start, start + TOGETHER))
        if low < high:
            partners, places = np.unique(pairs[low:high, 1], return_inverse=True)
            products = structure[start : start + TOGETHER] @ structure[partners].T
            found.append(products[pairs[low:high, 0] - start, places])
    return np.concatenate(found)
