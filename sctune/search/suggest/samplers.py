"""Samplers by name: which points Optuna suggests; the shipped ones, and those of other packages."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from sctune.errors import ConfigError, nearest
from sctune.plugins import load_plugin, plugin_names
from sctune.search.space.definition import Space
from sctune.search.space.finite import FiniteSpace
from sctune.search.suggest.beliefs import Prior
from sctune.search.suggest.bounded import Bounded
from sctune.search.suggest.nearest import Nearest
from sctune.search.suggest.prior_sampler import WithPriors
from sctune.search.suggest.wrapped import WrappedSampler


def _tpe(seed: int) -> BaseSampler:
    return Bounded(optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True))


def _gp(seed: int) -> BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, deterministic_objective=False, warn_independent_sampling=False)


def _cmaes(seed: int) -> BaseSampler:
    # categorical and conditional parameters are drawn at random beside it
    return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _nsga2(seed: int) -> BaseSampler:
    # the default population of 50 would be a random search in studies of our size
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=10)


def _qmc(seed: int) -> BaseSampler:
    # what is outside of its space would else be drawn again from the start after a resume
    beside = SeededByNumber(_random, seed)
    return optuna.samplers.QMCSampler(
        scramble=True, seed=seed, independent_sampler=beside, warn_independent_sampling=False
    )


def _random(seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


class Seeding(Enum):
    """How a sampler's random numbers go on over trials and resumes."""

    BY_NUMBER = "by number"
    """Made anew for each trial, from the study's seed and the trial's number: a resumed study draws the same.

    For samplers that carry nothing from trial to trial but their random numbers, or keep it with the trials.
    """
    BY_LAUNCH = "by launch"
    """One object for a launch; a resume draws on from another seed, or it would repeat the first draws."""
    ONCE = "once"
    """The same seed in every launch, for samplers whose place in a sequence is stored with the study."""


@dataclass(frozen=True)
class SamplerEntry:
    """make: seed in [0, 2**32) -> an Optuna sampler for a single objective.

    learns_from_full_runs: it ignores pruned trials, so it defaults to scheduler `none`, and another one warns. learns:
    from other trials at all; QMC takes its space from those that have ended.
    """

    make: Callable[[int], BaseSampler]
    seeding: Seeding = Seeding.BY_LAUNCH
    learns_from_full_runs: bool = False
    learns: bool = True


GROUP = "sctune.samplers"
"""Entry points of other packages: the sampler's name, and its SamplerEntry."""

REGISTRY: dict[str, SamplerEntry] = {
    "tpe": SamplerEntry(_tpe, Seeding.BY_NUMBER),
    "gp": SamplerEntry(_gp, learns_from_full_runs=True),
    # its distribution lies with the trials
    "cmaes": SamplerEntry(_cmaes, Seeding.BY_NUMBER, learns_from_full_runs=True),
    "nsga2": SamplerEntry(_nsga2, learns_from_full_runs=True),
    "qmc": SamplerEntry(_qmc, Seeding.ONCE),
    "random": SamplerEntry(_random, Seeding.BY_NUMBER, learns=False),
    # the suggester tries every point in declared order; Optuna's GridSampler breaks through ask and tell
    "grid": SamplerEntry(_random, Seeding.BY_NUMBER, learns=False),
}

SAMPLERS = tuple(REGISTRY)
"""Those that sctune ships."""


def sampler_names() -> tuple[str, ...]:
    return (*REGISTRY, *plugin_names(GROUP, but=REGISTRY))


def sampler_entry(name: str) -> SamplerEntry:
    """Raises ConfigError for an unknown name, and for one of another package that is no SamplerEntry."""
    if name in REGISTRY:
        return REGISTRY[name]
    if name not in sampler_names():
        raise ConfigError(f"unknown sampler {name!r}; {nearest(name, sampler_names())}")
    entry = load_plugin(GROUP, name)
    if not isinstance(entry, SamplerEntry):
        raise ConfigError(f"sampler {name!r} of another package is {entry!r}, and must be a SamplerEntry; mend it")
    return entry


def make_sampler(
    name: str, seed: int, *, space: Space | None = None, n_before: int = 0, priors: Sequence[Prior] = ()
) -> BaseSampler:
    """A seeded Optuna sampler for a single objective.

    seed: in [0, 2**32). n_before: trials that the study holds already (see Seeding). priors: need the space. In a
    finite space it proposes that one's configurations alone.
    Raises ConfigError for an unknown name, and for `grid` on a space with a continuous parameter.
    """
    made = _anywhere(name, seed, space, n_before)
    if priors:
        assert space is not None
        made = WithPriors(made, priors, space, seed)
    return Nearest(made, space, seed) if isinstance(space, FiniteSpace) else made


def _anywhere(name: str, seed: int, space: Space | None, n_before: int) -> BaseSampler:
    entry = sampler_entry(name)
    if name == "grid" and space is not None and space.size() is None:
        endless = [parameter.name for parameter in space.parameters if parameter.count is None]
        raise ConfigError(f"sampler grid: {', '.join(endless)} is continuous; give it a step or values: [...]")
    if entry.seeding is Seeding.BY_NUMBER:
        return SeededByNumber(lambda drawn: _made(entry, drawn), seed)
    if n_before and entry.seeding is Seeding.BY_LAUNCH:
        seed = int(np.random.SeedSequence([seed, n_before]).generate_state(1)[0])
    return _made(entry, seed)


class SeededByNumber(WrappedSampler):
    """A sampler made anew for each trial, seeded by the study's seed, the trial's number and how often it was asked.

    A proposal that was rejected is asked for again under the same number, and is then another one.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        super().__init__(make(seed))
        self._make, self._seed = make, seed
        self._asked: Counter[int] = Counter()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        entropy = [self._seed, trial.number, self._asked[trial.number]]
        self._asked[trial.number] += 1
        self._sampler = self._make(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        self._sampler.before_trial(study, trial)


def _made(entry: SamplerEntry, seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        # multivariate, group and GP are marked experimental; their use is deliberate
        warnings.simplefilter("ignore", ExperimentalWarning)
        return entry.make(seed)
