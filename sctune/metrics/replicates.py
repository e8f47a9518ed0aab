"""What replicates say of configurations: a mixed model of all trials and seeds, as one fit.

A value is y = m + u + s + e: a level, what the configuration adds, what the replicate (its seed: anomalies that are
trained on, first weights, batches) adds to every trial, and the rest. All trials meet the same replicates, so that s
takes no part in a difference between two that both have it. u, s and e are normal; their variances are those of all
trials together, the likeliest ones with a weak prior, since two or three replicates of a trial say little about its own
spread. Means given
the values, best linear unbiased predictions of m + u, are shrunk to m, the more the fewer replicates stand behind
them (Robinson 1991, "That BLUP is a good thing"). That the better trials have more replicates does no harm: who is
replicated is decided by what the model knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

Array = np.ndarray

PRIOR_SHARE = 0.5
"""What the prior takes each of the three variances for, of the variance among the values of one replicate."""
PRIOR_SD = 0.7
"""Of the logarithm of each variance, beside how well the variance among values is known."""
LEAST_SHARE = 1e-3
"""Of the level: what the values of one replicate are taken to differ by at least, all equal ones too."""
DRAWS = 4000
_TINY = 1e-12


@dataclass(frozen=True)
class Standing:
    """What is known of some trials. numbers [N]: of the trials, ascending; counts [N]: replicates of each.

    means [N]: expected merit over all seeds; error: SD of a replicate about its trial, without what all trials share;
    spread: SD among configurations; moved: SD of what a replicate does to all. Covariance of the means: diag(own) +
    shared @ common @ shared.T, with own [N], shared [N, R + 1] and common [R + 1, R + 1].
    """

    numbers: tuple[int, ...]
    counts: Array
    means: Array
    error: float
    spread: float
    moved: float
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
    has = np.arange(int(counts.max())) < counts[:, None]
    table = np.zeros(has.shape)
    table[has] = np.concatenate([np.asarray(values[number], np.float64) for number in numbers])
    # figures near each other, told apart exactly
    level = float(table[:, 0].mean())
    table = np.where(has, table - level, 0.0)
    logs = _likeliest(table, has, (LEAST_SHARE * max(abs(level), _TINY)) ** 2)
    solved = _solve(table, has, logs)
    shared = -solved.own[:, None] * solved.design
    shared[:, 0] += 1
    common = np.linalg.inv(solved.between)
    sums = table.sum(axis=1) / math.exp(logs[0])
    means = level + shared @ (common @ solved.rest) + solved.own * sums
    error, spread, moved = np.exp(logs / 2)
    return Standing(numbers, counts, means, error, spread, moved, solved.own, shared, common)


@dataclass(frozen=True)
class _Solved:
    """Henderson's equations without the trials. own [N]; design [N, R + 1]; between [R + 1, R + 1]; rest [R + 1]."""

    own: Array
    design: Array
    between: Array
    rest: Array


def _solve(table: Array, has: Array, logs: Array) -> _Solved:
    """logs: of the variances of error, trials and replicates."""
    error, spread, moved = np.exp(logs)
    own = 1 / (has.sum(axis=1) / error + 1 / spread)
    # the level, and each replicate
    design = np.column_stack([has.sum(axis=1), has]) / error
    per = has.sum(axis=0)
    between = np.diag(np.concatenate([[per.sum()], per + error / moved])) / error
    between[0, 1:] = between[1:, 0] = per / error
    between -= design.T @ (own[:, None] * design)
    rest = np.concatenate([[table.sum()], table.sum(axis=0)]) / error - design.T @ (own * table.sum(axis=1) / error)
    return _Solved(own, design, between, rest)


def _likeliest(table: Array, has: Array, floor: float) -> Array:
    """Logarithms of the variances of error, trials and replicates: the restricted likelihood with a weak prior.

    The prior's place is the variance among the values of one replicate, pooled over replicates, and `floor` at least:
    it is the less sure the fewer values there are.
    """
    within, degrees = 0.0, 0
    for values, there in zip(table.T, has.T, strict=True):
        within += float(((values[there] - values[there].mean()) ** 2).sum())
        degrees += int(there.sum()) - 1
    total = max(within / max(degrees, 1), floor)
    start = np.full(3, math.log(PRIOR_SHARE * total))
    width = PRIOR_SD**2 + 2 / max(degrees, 1)

    def deviance(logs: Array) -> float:
        return _deviance(table, has, logs) + float(((logs - start) ** 2).sum()) / width

    found = optimize.minimize(deviance, start, method="L-BFGS-B", bounds=[(one - 12, one + 12) for one in start])
    return np.asarray(found.x)


def _deviance(table: Array, has: Array, logs: Array) -> float:
    """-2 log of the restricted likelihood, but for a constant (Harville 1977)."""
    solved = _solve(table, has, logs)
    error = math.exp(logs[0])
    sums = table.sum(axis=1) / error
    explained = solved.rest @ np.linalg.solve(solved.between, solved.rest) + (solved.own * sums**2).sum()
    determinant = np.linalg.slogdet(solved.between)[1] - np.log(solved.own).sum()
    sizes = np.array([has.sum(), *has.shape])
    return float(sizes @ logs + determinant + (table**2).sum() / error - explained)
