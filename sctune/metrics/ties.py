"""When two scores are the same: rounding of float32 arithmetic must not decide which image ranks higher."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

TIE = 1e-6
"""Scores that differ by less than this share of their size are one tie: eight steps of float32.

The size is that of the lower of the two, or the median of all where that is larger: what a score near zero is summed
up from is as large as in the others. A second run, another batch or another processor moves scores by less.
"""

DECIMALS = 12
"""Of AUROC values and their means: far below what one pair of images makes, and above the rounding of sums."""


def with_ties(scores: ArrayLike) -> NDArray[np.float64]:
    """Scores [N], each tie of them replaced by its lowest; their order is else kept.

    From the lowest score on, all that lie within `TIE` of it are one tie, and the next one begins another: so no tie is
    wider than that, however many scores there are. Scores must be finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size < 2:
        return values.copy()
    levels, where = np.unique(values, return_inverse=True)
    widths = TIE * np.maximum(np.abs(levels), np.median(np.abs(values)))
    if (np.diff(levels) > widths[:-1]).all():
        return values.copy()
    # the first level above each one's tie
    following = np.maximum(np.searchsorted(levels, levels + widths, side="right"), np.arange(1, levels.size + 1))
    merged, start = levels.copy(), 0
    while start < levels.size:
        merged[start : following[start]] = levels[start]
        start = int(following[start])
    return np.asarray(merged[where], dtype=np.float64)


def rounded(auroc: float) -> float:
    """An AUROC, or a mean of such, without the rounding of its arithmetic: the same order gives the same value."""
    return round(auroc, DECIMALS)
