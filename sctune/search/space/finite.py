"""A space of which some points alone can be had: the configurations of a recorded table, or the trials of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sctune.search.space.definition import Space, Values
from sctune.search.space.parameter import Parameter
from sctune.search.space.scale import unit_cell


@dataclass(frozen=True)
class FiniteSpace(Space):
    """configurations: all that can be had, each once, as `Space.suggest` gives them."""

    configurations: tuple[Values, ...] = ()

    def size(self) -> int:
        return len(self.configurations)

    def points(self) -> Iterator[Values]:
        return (dict(values) for values in self.configurations)

    def place(self, values: Mapping[str, Any]) -> int:
        """Which configuration this is; KeyError where it is none of them."""
        return self._places[self.key(values)]

    def distances(self, values: Mapping[str, Any]) -> np.ndarray:
        """From a point to each configuration [C], in [0, 1]: the mean over the parameters that either of the two has.

        Gower's (1971). A number or an ordered choice counts by how far apart the two lie as a share of the range, on
        the scale on which it is drawn; an unordered choice, and one that only one of the two has, with 0 where they are
        the same and 1 where not.
        """
        here, there = self._row(values), self._rows
        has, have = ~np.isnan(here), ~np.isnan(there)
        apart = np.abs(np.nan_to_num(there) - np.nan_to_num(here))
        apart = np.where(self._unordered, apart > 0, apart)
        apart = np.where(has != have, 1.0, np.where(has & have, apart, 0.0))
        return apart.sum(axis=1) / np.maximum((has | have).sum(axis=1), 1)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {self.key(values): place for place, values in enumerate(self.configurations)}

    @cached_property
    def _unordered(self) -> np.ndarray:
        return np.array([isinstance(one.distribution(), CategoricalDistribution) for one in self.parameters])

    @cached_property
    def _rows(self) -> np.ndarray:
        return np.array([self._row(values) for values in self.configurations])

    def _row(self, values: Mapping[str, Any]) -> np.ndarray:
        """A point [P]: numbers in [0, 1], unordered choices by their index, NaN where a parameter is not active."""
        return np.array([_unit(one, values[one.name]) if one.name in values else np.nan for one in self.parameters])


def confined(space: Space, configurations: Sequence[Values]) -> FiniteSpace:
    """A space to some of its points. Start points become the first configuration that has all their values.

    One that none of them has is left out.
    """
    start = []
    for point in space.start:
        alike = [one for one in configurations if all(one.get(name, ()) == value for name, value in point.items())]
        start += alike[:1]
    kept = {field.name: getattr(space, field.name) for field in fields(Space)}
    return FiniteSpace(**kept | {"start": tuple(start)}, configurations=tuple(configurations))


def _unit(parameter: Parameter, value: Any) -> float:
    distribution, stored = parameter.distribution(), parameter.encode(value)
    if isinstance(distribution, CategoricalDistribution):
        return float(distribution.choices.index(stored))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return sum(unit_cell(distribution, stored)) / 2
