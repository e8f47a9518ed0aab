"""Samplers by name: which points Optuna proposes."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

from sctune.errors import ConfigError, nearest
from sctune.search.space import Space


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

LEARNS_FROM_FULL_RUNS = ("gp", "cmaes", "nsga2")
"""They ignore pruned trials, so they default to scheduler `none` and a combination with another one warns."""


def make_sampler(name: str, seed: int, *, space: Space | None = None, n_before: int = 0) -> BaseSampler:
    """A seeded Optuna sampler for a single objective.

    seed: in [0, 2**32). n_before: trials that the study holds already; a resumed study draws on from another seed,
    or it would repeat its first draws (qmc keeps its seed: its place in the sequence is stored with the study).
    Raises ConfigError for an unknown name, and for `grid` on a space with a continuous parameter.
    """
    if name not in _MAKERS:
        raise ConfigError(f"unknown sampler {name!r}; {nearest(name, SAMPLERS)}")
    if name == "grid" and space is not None and space.size() is None:
        endless = [parameter.name for parameter in space.parameters if parameter.count is None]
        raise ConfigError(f"sampler grid: {', '.join(endless)} is continuous; give it a step or values: [...]")
    if n_before and name != "qmc":
        seed = int(np.random.SeedSequence([seed, n_before]).generate_state(1)[0])
    with warnings.catch_warnings():
        # multivariate, group and GP are marked experimental; their use is deliberate
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _MAKERS[name](seed)
