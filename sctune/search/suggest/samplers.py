"""Samplers by name: which points Optuna proposes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sctune.errors import ConfigError, nearest
from sctune.search.space.definition import Space


def _tpe(seed: int) -> BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def _gp(seed: int) -> BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, deterministic_objective=False, warn_independent_sampling=False)


def _cmaes(seed: int) -> BaseSampler:
    # categorical and conditional parameters are drawn at random beside it
    return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _nsga2(seed: int) -> BaseSampler:
    # the default population of 50 would be a random search in studies of our size
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=10)


def _qmc(seed: int) -> BaseSampler:
    return optuna.samplers.QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)


def _random(seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


_MAKERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "nsga2": _nsga2,
    "qmc": _qmc,
    "random": _random,
    # the searcher enqueues every point in declared order; Optuna's GridSampler breaks through ask and tell
    "grid": _random,
}

SAMPLERS = tuple(_MAKERS)

_SEEDED_BY_NUMBER = ("random", "tpe", "cmaes")
"""They carry nothing from trial to trial but their random numbers; CMA-ES keeps its distribution with the trials."""

LEARNS_FROM_FULL_RUNS = ("gp", "cmaes", "nsga2")
"""They ignore pruned trials, so they default to scheduler `none` and a combination with another one warns."""


def make_sampler(name: str, seed: int, *, space: Space | None = None, n_before: int = 0) -> BaseSampler:
    """A seeded Optuna sampler for a single objective.

    seed: in [0, 2**32). random, tpe and cmaes draw from the seed and the trial's number, so that a resumed study draws
    what an undisturbed one would (tpe and cmaes: from the same history). n_before: trials that the study holds already;
    the others draw on from another seed, or they would repeat their first draws (qmc keeps its seed: its place in the
    sequence is stored with the study).
    Raises ConfigError for an unknown name, and for `grid` on a space with a continuous parameter.
    """
    if name not in _MAKERS:
        raise ConfigError(f"unknown sampler {name!r}; {nearest(name, SAMPLERS)}")
    if name == "grid" and space is not None and space.size() is None:
        endless = [parameter.name for parameter in space.parameters if parameter.count is None]
        raise ConfigError(f"sampler grid: {', '.join(endless)} is continuous; give it a step or values: [...]")
    if name in _SEEDED_BY_NUMBER:
        return SeededByNumber(lambda drawn: _make(name, drawn), seed)
    if n_before and name != "qmc":
        seed = int(np.random.SeedSequence([seed, n_before]).generate_state(1)[0])
    return _make(name, seed)


class SeededByNumber(BaseSampler):
    """A sampler made anew for each trial, seeded by the study's seed, the trial's number and how often it was asked.

    A proposal that was rejected is asked for again under the same number, and is then another one.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._asked: Counter[int] = Counter()
        self._sampler = make(seed)

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        entropy = [self._seed, trial.number, self._asked[trial.number]]
        self._asked[trial.number] += 1
        self._sampler = self._make(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler.after_trial(study, trial, state, values)


def _make(name: str, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        # multivariate, group and GP are marked experimental; their use is deliberate
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _MAKERS[name](seed)
