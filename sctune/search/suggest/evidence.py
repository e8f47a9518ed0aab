"""How well a belief agrees with what a study has seen so far, and what share of the proposals it gets for that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from sctune.search.space.definition import Space
from sctune.search.space.scale import unit_cell
from sctune.search.suggest.beliefs import Belief, Prior

NEWEST = 300
"""Trials that are looked at: pairs of all of them are compared at each proposal."""

Point = Mapping[str, Any]


def merits(trials: Sequence[FrozenTrial], sign: float) -> np.ndarray:
    """(trials,), in [-1, 1]: the share of the others that each is better than, less that of those better than it.

    Two trials are compared at the last epoch that both have reached: one that was stopped early is not worse for it.
    sign: 1 where more is better, -1 where less is.
    """
    curves = [trial.intermediate_values or {0: trial.value or 0.0} for trial in trials]
    columns = {epoch: column for column, epoch in enumerate(sorted({epoch for curve in curves for epoch in curve}))}
    table, last = np.empty((len(trials), len(columns))), np.empty(len(trials), dtype=int)
    for row, curve in enumerate(curves):
        latest = curve[min(curve)]
        for epoch, column in columns.items():
            latest = table[row, column] = curve.get(epoch, latest)
        last[row] = columns[max(curve)]
    found = np.empty(len(trials))
    for row in range(len(trials)):
        common = np.minimum(last, last[row])
        found[row] = np.sign(table[row, common] - table[np.arange(len(trials)), common]).sum()
    return sign * found / max(len(trials) - 1, 1)


class Order:
    """What an earlier study's trials say of a point: the mean of their merits, the nearer the heavier.

    A Nadaraya-Watson estimate with a Gaussian kernel over the parameters that an earlier trial and the point share; one
    that only one of the two has counts as another choice.
    """

    REACH = 0.2
    """Standard deviation of the kernel, as a share of a range; another choice is as far as one range."""

    def __init__(self, space: Space, prior: Prior) -> None:
        self._distributions = {
            name: space.by_name[name].distribution() for told in prior.trials for name in told.values
        }
        self._choices = np.array([isinstance(one, CategoricalDistribution) for one in self._distributions.values()])
        self._told = np.array([self._places(space.encode(told.values)) for told in prior.trials])
        self._merits = np.array([told.merit for told in prior.trials])

    def __call__(self, point: Point) -> float:
        own = self._places(point)
        apart = np.where(self._choices, self._told != own, np.abs(self._told - own))
        absent, lacking = np.isnan(self._told), np.isnan(own)
        apart = np.where(absent | lacking, absent != lacking, apart)
        squares = (apart**2).sum(axis=1)
        weights = np.exp(-(squares - squares.min()) / (2 * self.REACH**2))
        return float(weights @ self._merits / weights.sum())

    def _places(self, point: Point) -> np.ndarray:
        """(parameters,): on its scale of 0 to 1, a choice by its number, NaN where the point lacks it."""
        places = [
            _place(distribution, point[name]) if name in point else math.nan
            for name, distribution in self._distributions.items()
        ]
        return np.array(places)


def _place(distribution: BaseDistribution, stored: Any) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.to_internal_repr(stored)
    return sum(unit_cell(distribution, stored)) / 2


class Judged:
    """A prior before the trials of a study."""

    def __init__(self, space: Space, prior: Prior) -> None:
        self.name = prior.name
        self.beliefs = [Belief(space, dict(centre.values), centre.widths) for centre in prior.centres]
        weights = np.array([centre.weight for centre in prior.centres])
        self.weights = weights / weights.sum()
        self._order: Callable[[Point], float] = Order(space, prior) if prior.trials else self._closest
        self._expected: dict[int, float] = {}
        self._densities: dict[int, float] = {}

    def expected(self, trials: Sequence[FrozenTrial]) -> np.ndarray:
        """(trials,): the higher, the better the prior takes a point to be; only differences mean something."""
        return self._all(self._expected, self._order, trials)

    def log_densities(self, trials: Sequence[FrozenTrial]) -> np.ndarray:
        """(trials,): of their points around the prior, relative to uniform."""
        return self._all(self._densities, self._log_density, trials)

    def _all(
        self, known: dict[int, float], work_out: Callable[[Point], float], trials: Sequence[FrozenTrial]
    ) -> np.ndarray:
        # the point of an ended trial stays what it is
        for trial in trials:
            if trial.number not in known:
                known[trial.number] = work_out(trial.params)
        return np.array([known[trial.number] for trial in trials])

    def _log_density(self, point: Point) -> float:
        parts = [math.log(w) + one.log_density(point) for w, one in zip(self.weights, self.beliefs, strict=True)]
        return float(np.logaddexp.reduce(parts))

    def _closest(self, point: Point) -> float:
        return max(belief.closeness(point) for belief in self.beliefs)


START = 0.5
"""Credibility of a prior before anything is seen."""

RIGHT = 0.6
"""Correlation of a right prior with what is seen; half of it speaks neither for nor against."""


def credibility(expected: np.ndarray, seen: np.ndarray) -> float:
    """Chance that a prior is right rather than of no use, in (0, 1); START before anything is seen.

    expected: (trials,) of the prior; seen: (trials,) merits. The correlation r of n trials errs by about
    1 / sqrt(n - 1); that it is RIGHT rather than 0 is then exp((n - 1) (r RIGHT - RIGHT^2 / 2)) times as likely.
    """
    n = len(seen)
    if n < 3 or np.ptp(expected) == 0 or np.ptp(seen) == 0:
        return START
    r = float(np.corrcoef(expected, seen)[0, 1])
    return 1 / (1 + (1 / START - 1) * math.exp(-max(min((n - 1) * (r * RIGHT - RIGHT**2 / 2), 30), -30)))
