"""How sure an AUROC is, and the difference of two on the same images: DeLong's variances, in closed form.

DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988); by sorting, as Sun and Xu, IEEE SPL 21 (2014).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sctune.metrics.ties import with_ties

Row = NDArray[np.float64]


@dataclass(frozen=True)
class Placements:
    """Where each image lies among those of the other class; ties count half. The mean of either row is the AUROC.

    anomalous: [A] share of the normal images that each anomalous one scores above; normal: [N] share of the anomalous
    images that score above each normal one.
    """

    anomalous: Row
    normal: Row

    @classmethod
    def of(cls, labels: ArrayLike, scores: ArrayLike) -> Placements:
        """labels: [M] 0 normal, 1 anomalous, both present; scores: [M] finite, higher is more anomalous.

        Takes O(M log M). Raises ValueError for other input.
        """
        truth, values = np.asarray(labels).astype(bool), np.asarray(scores, dtype=np.float64)
        if truth.ndim != 1 or truth.all() or not truth.any():
            raise ValueError(f"labels need both classes in one row, got {truth.shape} with {int(truth.sum())} ones")
        if values.shape != truth.shape or not np.isfinite(values).all():
            raise ValueError(f"scores must be {truth.size} finite numbers, got shape {values.shape}")
        values = with_ties(values)
        positive, negative = values[truth], values[~truth]
        return cls(_share_below(positive, negative), 1.0 - _share_below(negative, positive))

    @property
    def auroc(self) -> float:
        return float(self.anomalous.mean())

    @property
    def error(self) -> float:
        """Standard error of the AUROC, over other images of the same classes."""
        return math.sqrt(_variance_of_mean(self.anomalous) + _variance_of_mean(self.normal))

    def difference(self, other: Placements) -> tuple[float, float]:
        """This AUROC minus that of other scores of the same images, and its standard error; paired by image."""
        gap = Placements(self.anomalous - other.anomalous, self.normal - other.normal)
        return gap.auroc, gap.error


def _share_below(of: Row, among: Row) -> Row:
    """Share of `among` that lies below each of `of`, equal ones counting half."""
    ordered = np.sort(among)
    twice = np.searchsorted(ordered, of, side="left") + np.searchsorted(ordered, of, side="right")
    return np.asarray(twice / (2.0 * among.size), dtype=np.float64)


def _variance_of_mean(row: Row) -> float:
    # one image alone says nothing about how others of its class would score
    return float(row.var(ddof=1)) / row.size if row.size > 1 else 0.0
