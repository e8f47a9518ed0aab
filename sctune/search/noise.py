"""How far apart two AUROC values must be to mean anything: bootstrap standard errors over the scored images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_GAP = 2.0
"""A difference below this many standard errors is called not distinguishable."""


def auroc_se(labels: ArrayLike, scores: ArrayLike, n: int = 1000, seed: int = 0) -> float:
    """Bootstrap standard error of one AUROC.

    labels: [N] 0 normal, 1 anomalous, both present; scores: [N] finite, higher is more anomalous; n: resamples,
    each drawn with replacement within the two classes. Raises ValueError for other input.
    """
    (values,) = _check(labels, scores)
    return _spread(labels, lambda negative, positive: _auroc(values[negative], values[positive]), n, seed)


def auroc_difference_se(
    labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, n: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """AUROC of a minus that of b on the same images, and its paired bootstrap standard error.

    Both are resampled with the same images, so that what is hard for both cancels. Arguments as in `auroc_se`.
    """
    a, b = _check(labels, scores_a, scores_b)
    truth = np.asarray(labels).astype(bool)
    difference = _auroc(a[~truth], a[truth]) - _auroc(b[~truth], b[truth])

    def gap(negative: NDArray[np.intp], positive: NDArray[np.intp]) -> float:
        return _auroc(a[negative], a[positive]) - _auroc(b[negative], b[positive])

    return difference, _spread(labels, gap, n, seed)


def _spread(
    labels: ArrayLike, statistic: Callable[[NDArray[np.intp], NDArray[np.intp]], float], n: int, seed: int
) -> float:
    truth = np.asarray(labels).astype(bool)
    negative, positive = np.flatnonzero(~truth), np.flatnonzero(truth)
    generator = np.random.default_rng(seed)
    draws = [
        statistic(generator.choice(negative, negative.size), generator.choice(positive, positive.size))
        for _ in range(n)
    ]
    return float(np.std(draws, ddof=1))


def _auroc(negative: NDArray[np.float64], positive: NDArray[np.float64]) -> float:
    """Probability that an anomaly scores above a normal image, ties counting half (Mann-Whitney)."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left") + np.searchsorted(ordered, positive, side="right")
    return float(below.mean() / (2 * negative.size))


def _check(labels: ArrayLike, *scores: ArrayLike) -> list[NDArray[np.float64]]:
    truth = np.asarray(labels).astype(bool)
    arrays = [np.asarray(row, dtype=np.float64) for row in scores]
    if truth.ndim != 1 or truth.all() or not truth.any():
        raise ValueError(f"labels need both classes in one row, got shape {truth.shape} with {int(truth.sum())} ones")
    for row in arrays:
        if row.shape != truth.shape or not np.isfinite(row).all():
            raise ValueError(f"scores must be {truth.size} finite numbers, got shape {row.shape}")
    return arrays
