"""A sampler among the configurations of a finite space: where it proposes a point, the nearest untried one is taken.

The sampler is told what was taken, so that it learns of what was really tried. What that leaves out: its proposal may
lie far from all that can be had, and a configuration with few neighbours stands for more of the space than others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from sctune.search.space.definition import Values
from sctune.search.space.finite import FiniteSpace
from sctune.search.suggest.optuna_private import FIXED
from sctune.search.suggest.wrapped import WrappedSampler

_SALT = 11
_EQUAL = 1e-12


@dataclass(frozen=True)
class Moved:
    """How far a proposal lay from what was taken for it, and from the nearest of all configurations, tried or not."""

    taken: float
    nearest: float


class Nearest(WrappedSampler):
    """moved: number of a trial -> how far its proposal was moved; none for a trial that began at a given point."""

    def __init__(self, sampler: BaseSampler, space: FiniteSpace, seed: int) -> None:
        """seed: of the study; draws among configurations that are equally near."""
        super().__init__(sampler)
        self._space, self._seed = space, seed
        self._stored = [space.encode(values) for values in space.configurations]
        self._places = {self._key(stored): place for place, stored in enumerate(self._stored)}
        self._distributions = space.distributions
        self.moved: dict[int, Moved] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        # a given point is a whole one
        return {} if FIXED in trial.system_attrs else self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if FIXED in trial.system_attrs:
            return {}
        apart = self._space.distances(self._proposal(study, trial))
        tried = [self._places.get(self._key(one.params)) for one in study.get_trials(deepcopy=False)]
        left = apart.copy()
        left[[place for place in tried if place is not None]] = np.inf
        nearest = np.flatnonzero(left <= left.min() + _EQUAL)
        rng = np.random.default_rng([self._seed, trial.number, _SALT])
        taken = int(nearest[rng.integers(len(nearest))])
        self.moved[trial.number] = Moved(float(apart[taken]), float(apart.min()))
        return self._stored[taken]

    def _proposal(self, study: Study, trial: FrozenTrial) -> Values:
        """A whole point of the sampler's, drawn as Optuna's own `Trial` would."""
        together = self._sampler.infer_relative_search_space(study, trial)
        drawn = self._sampler.sample_relative(study, trial, together)
        values: Values = {}
        for parameter in self._space.parameters:
            if not self._space.is_active(parameter, values):
                continue
            name, distribution = parameter.name, self._distributions[parameter.name]
            if distribution.single():
                values[name] = next(parameter.values(), parameter.probes()[0])
            elif name in drawn and together.get(name) == distribution:
                values[name] = parameter.decode(drawn[name])
            else:
                values[name] = parameter.decode(self._sampler.sample_independent(study, trial, name, distribution))
        return values

    def _key(self, stored: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple((one.name, stored[one.name]) for one in self._space.parameters if one.name in stored)
