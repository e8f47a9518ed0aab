"""What replicates say of configurations: a mixed model of all trials and seeds, as one fit.

A value is y = m + u + s + e: a level, what the configuration adds, what the replicate (its seed: anomalies that are
trained on, first weights, batches) adds to every trial, and the rest. All trials meet the same replicates, so that s
takes no part in a difference between two that both have it. u, s and e are normal; their variances are pooled over all
trials and shrunk to a prior, since two or three replicates of a trial say little about its own spread. Means given
the values, best linear unbiased predictions of m + u, are shrunk to m, the more the fewer replicates stand behind
them (Robinson 1991, "That BLUP is a good thing"). That the better trials have more replicates does no harm: who is
replicated is decided by what the model knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

PRIOR_DEGREES = 4.0
"""What the prior of the error counts for, in degrees of freedom."""
PRIOR_SHARE = 0.5
"""Of the variance among first replicates: what the prior takes for error."""
LEAST_SPREAD = 0.1
"""Of the same variance: the least that the configurations are taken to differ by."""
DRAWS = 4000
_TINY = 1e-12


@dataclass(frozen=True)
class Standing:
    """What is known of some trials. numbers [N]: of the trials, ascending; counts [N]: replicates of each.

    means [N]: expected merit over all seeds; error: SD of a replicate about its trial without what all trials share;
    spread: SD among configurations. Covariance of the means: diag(own) + shared @ common @ shared.T, with own [N],
    shared [N, R + 1] and common [R + 1, R + 1].
    """

    numbers: tuple[int, ...]
    counts: Array
    means: Array
    error: float
    spread: float
    own: Array
    shared: Array
    common: Array

    @property
    def leader(self) -> int:
        """Place of the trial with the highest mean, the earlier one of equals."""
        return int(np.argmax(self.means))

    def gap_errors(self, place: int) -> Array:
        """SD of the difference between the mean at a place and each trial's [N]; 0 for itself."""
        apart = self.shared - self.shared[place]
        variance = self.own + self.own[place] + np.einsum("ni,ij,nj->n", apart, self.common, apart)
        variance[place] = 0.0
        return np.sqrt(variance)

    def chances(self, within: float) -> tuple[Array, Array]:
        """For each trial [N]: the chance that it is the best of these, and that it is at most `within` below the best.

        From DRAWS seeded draws of all means together.
        """
        rng = np.random.default_rng(0)
        values, vectors = np.linalg.eigh(self.common)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        best, near = np.zeros(len(self.means)), np.zeros(len(self.means))
        for _ in range(DRAWS):
            drawn = self.means + self.shared @ (root @ rng.standard_normal(len(values)))
            drawn += np.sqrt(self.own) * rng.standard_normal(len(drawn))
            best[np.argmax(drawn)] += 1
            near += drawn >= drawn.max() - within
        return best / DRAWS, near / DRAWS

    def cost_to_settle(self, place: int, within: float, confidence: float) -> int:
        """Further replicates until the trial at a place is told apart from each other one by `confidence` SDs.

        About: where the means stay as they are, and those that are within `within` of it are so far from it. Both
        trials of a pair need as many replicates.
        """
        gaps = np.maximum(np.abs(self.means[place] - self.means), within)
        needed = np.ceil(2 * (confidence * self.error / gaps) ** 2).astype(int)
        unsettled = gaps < confidence * self.gap_errors(place)
        unsettled[place] = False
        if not unsettled.any():
            return 0
        own = max(int(needed[unsettled].max()) - int(self.counts[place]), 0)
        return own + int(np.maximum(needed - self.counts, 0)[unsettled].sum())


def standing(values: Mapping[int, Sequence[float]]) -> Standing:
    """values: trial -> merits of its first replicates, one or more each; higher is better. ValueError for no trial."""
    if not values:
        raise ValueError("no trial has a replicate")
    numbers = tuple(sorted(values))
    counts = np.array([len(values[number]) for number in numbers])
    n_replicates = int(counts.max())
    has = np.arange(n_replicates) < counts[:, None]
    table = np.zeros(has.shape)
    table[has] = np.concatenate([np.asarray(values[number], np.float64) for number in numbers])
    # figures near each other, told apart exactly
    level = float(table[:, 0].mean())
    table = np.where(has, table - level, 0.0)
    spread, error = _variances(table, has)
    own = 1 / (counts / error + 1 / spread)
    # the level, and each replicate: [R + 1]
    design = np.column_stack([counts, has]) / error
    between = _between(has, error)
    rest = np.concatenate([[table.sum()], table.sum(axis=0)]) / error - design.T @ (own * table.sum(axis=1) / error)
    common = np.linalg.inv(between - design.T @ (own[:, None] * design))
    fixed = common @ rest
    shared = -own[:, None] * design
    shared[:, 0] += 1
    means = level + shared @ fixed + own * table.sum(axis=1) / error
    return Standing(numbers, counts, means, math.sqrt(error), math.sqrt(spread), own, shared, common)


def _between(has: Array, error: float) -> Array:
    """Information about the level and the replicates [R + 1, R + 1]; those spread as the error does."""
    per = has.sum(axis=0)
    found = np.diag(np.concatenate([[per.sum()], per + 1.0]))
    found[0, 1:] = found[1:, 0] = per
    return found / error


def _variances(table: Array, has: Array) -> tuple[float, float]:
    """Of the configurations and of the error; table [N, R], 0 where there is no replicate."""
    total = max(float(table[:, 0].var(ddof=1)), _TINY) if len(table) > 1 else _TINY
    squares, degrees = _residual(table[has.sum(axis=1) > 1], has[has.sum(axis=1) > 1])
    error = (squares + PRIOR_DEGREES * PRIOR_SHARE * total) / (degrees + PRIOR_DEGREES)
    return max(total - error, LEAST_SPREAD * total), error


def _residual(table: Array, has: Array) -> tuple[float, int]:
    """Sum of squares about trial and replicate effects, and its degrees of freedom; of trials with two replicates."""
    if len(table) < 2:
        return 0.0, 0
    trial, replicate = np.nonzero(has)
    design = np.column_stack([np.eye(len(table))[trial], np.eye(table.shape[1])[replicate][:, 1:]])
    found, _, rank, _ = np.linalg.lstsq(design, table[has], rcond=None)
    return float(((table[has] - design @ found) ** 2).sum()), len(trial) - int(rank)
