"""How far apart two AUROC values must be to mean anything: standard errors over the scored images, by DeLong."""

from __future__ import annotations

from numpy.typing import ArrayLike

from sctune.metrics.delong import Placements

MIN_GAP = 2.0
"""A difference below this many standard errors is called not distinguishable."""


def auroc_se(labels: ArrayLike, scores: ArrayLike) -> float:
    """Standard error of one AUROC over other images of the same classes.

    labels: [N] 0 normal, 1 anomalous, both present; scores: [N] finite, higher is more anomalous. Raises ValueError for
    other input.
    """
    return Placements.of(labels, scores).error


def auroc_difference_se(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike) -> tuple[float, float]:
    """AUROC of a minus that of b on the same images, and its paired standard error: what is hard for both cancels.

    Arguments as in `auroc_se`.
    """
    return Placements.of(labels, scores_a).difference(Placements.of(labels, scores_b))
