"""What a recorded table knows of its configurations, and how often searches find one that is as good as the best.

No configuration's true mean is in a table: its seeds are draws, for a search and for the truth alike. To hold seeds out
of the search would make the truth noisier still, and the best of noisy means is partly luck. So the truth is what all
seeds together say by the mixed model of `metrics.replicates`: for each configuration the chance that it lies within so
much of the best one. Given all that is known this is right for whatever a search chooses, by whichever of the same
seeds it chose: the mean of that chance over searches is the chance of a hit, as far as the model holds (normal, with
one variance of seeds for all configurations). A plain mean over the seeds that a search saw would flatter it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sctune.metrics.replicates import standing
from sctune.search.simulate.table import RecordedTable

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Truth:
    """near [C]: chance that a configuration lies at most `within` below the best; means [C]: expected merit over all
    seeds. spread, error, moved: SD among configurations, of a seed about one, and of what a seed does to all.
    """

    within: float
    near: np.ndarray
    means: np.ndarray
    spread: float
    error: float
    moved: float

    @property
    def from_seed_to_seed(self) -> float:
        """SD of a configuration, with what moves all of them."""
        return math.hypot(self.moved, self.error)

    @property
    def shared(self) -> float:
        """What moves all configurations together, as a share of the variance from seed to seed."""
        return (self.moved / self.from_seed_to_seed) ** 2


def truth_of(table: RecordedTable, within: float) -> Truth:
    """within: in units of the objective, 0 or more."""
    found = standing({place: merits.tolist() for place, merits in enumerate(table.ends)})
    near = found.chances(within)[1]
    return Truth(within, near, found.means, found.spread, found.error, found.moved)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


def chance(hits: Sequence[float]) -> Estimate:
    """Of values in [0, 1], each the chance that one search hit: Clopper and Pearson's interval for as many yes-or-no
    searches as would have the same standard error (Korn and Graubard 1998).
    """
    values = np.asarray(hits, np.float64)
    share = float(values.mean())
    variance = float(values.var(ddof=1)) / values.size if values.size > 1 else 0.0
    searches = share * (1 - share) / variance if variance > 0 else float(values.size)
    found, tail = searches * share, (1 - CONFIDENCE) / 2
    low = float(stats.beta.ppf(tail, found, searches - found + 1)) if found > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, found + 1, searches - found)) if found < searches else 1.0
    return Estimate(share, low, high)


def difference(hits: Sequence[float], others: Sequence[float]) -> Estimate:
    """Of two ways whose searches are pairs: the same order of the seeds, the same draws of the sampler."""
    gaps = np.asarray(hits, np.float64) - np.asarray(others, np.float64)
    value = float(gaps.mean())
    half = 0.0
    if gaps.size > 1:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, gaps.size - 1) * gaps.std(ddof=1)) / math.sqrt(gaps.size)
    return Estimate(value, value - half, value + half)
