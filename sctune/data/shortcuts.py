"""What tells normal from anomalous images without looking at them: a detector would learn that, not the defects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from sctune.data.facts import ImageFacts
from sctune.data.image_file import ImageFile

WARN_FROM = 0.9
"""AUROC of a trivial feature from which on it is told."""
FEWEST = 5
"""Images of each class below which an AUROC says nothing."""
MEASURES = {
    "width": "width",
    "height": "height",
    "nbytes": "file size",
    "quality": "JPEG quality",
    "mean": "mean brightness",
    "deviation": "standard deviation of brightness",
}


def shortcuts(files: Sequence[ImageFile], facts: Mapping[str, ImageFacts]) -> dict[str, float]:
    """Feature -> AUROC in [0.5, 1] with which it alone tells the classes apart; empty where there are too few images.

    Where the data set's maker has put normal and anomalous images into a test set, only these are looked at: the
    training images of the same maker need not be numbered or photographed like them.
    """
    chosen = _where_both_are([file for file in files if file.path in facts])
    labels = np.array([file.label for file in chosen])
    if min(np.count_nonzero(labels == 0), np.count_nonzero(labels == 1)) < FEWEST:
        return {}
    rows = [facts[file.path] for file in chosen]
    found = {
        shown: _auroc(labels, np.array([getattr(row, name) for row in rows], float)) for name, shown in MEASURES.items()
    }
    found["container depth"] = _by_category(labels, [row.depth for row in rows])
    found["file type and mode"] = _by_category(labels, [row.kind for row in rows])
    found["text of the file name"] = _by_name(labels, [PurePosixPath(file.path).name for file in chosen])
    return {name: round(value, 4) for name, value in found.items()}


def _where_both_are(files: Sequence[ImageFile]) -> list[ImageFile]:
    tested = [file for file in files if file.split == "test"]
    return tested if len({file.label for file in tested}) == 2 else list(files)


def _auroc(labels: np.ndarray, values: np.ndarray) -> float:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    # equal values share the mean of their ranks
    ranks, anomalous = (np.cumsum(counts) - (counts - 1) / 2)[places], labels == 1
    count = int(anomalous.sum())
    pairs = count * (len(labels) - count)
    value = (float(ranks[anomalous].sum()) - count * (count + 1) / 2) / pairs
    return max(value, 1 - value)


def _by_category(labels: np.ndarray, names: Sequence[str]) -> float:
    """By the share of anomalies among the images of the same category; nothing where nearly each has its own."""
    kinds, codes = np.unique(names, return_inverse=True)
    if len(kinds) < 2 or len(kinds) > len(labels) / FEWEST:
        return 0.5
    share = np.bincount(codes, weights=labels) / np.bincount(codes)
    return _auroc(labels, share[codes])


def _by_name(labels: np.ndarray, names: Sequence[str]) -> float:
    """The best of the letters of the names and, where all have as many, each of their numbers."""
    numbers = [[float(text) for text in re.findall(r"\d{1,15}", name)] for name in names]
    found = [_by_category(labels, [re.sub(r"\d+", "0", name.lower()) for name in names])]
    if len({len(row) for row in numbers}) == 1:
        found += [_auroc(labels, column) for column in np.array(numbers).T if not _counted_apart(labels, column)]
    return max(found)


def _counted_apart(labels: np.ndarray, numbers: np.ndarray) -> bool:
    """Whether both classes are counted from the same start: then the larger class reaches higher, and that is all."""
    classes = [np.unique(numbers[labels == label]) for label in (0, 1)]
    spans = [values[-1] - values[0] + 1 for values in classes]
    counted = all(len(values) > 1 and len(values) > span / 2 for values, span in zip(classes, spans, strict=True))
    return counted and bool(abs(classes[0][0] - classes[1][0]) <= 1)
