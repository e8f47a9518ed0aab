"""What somebody believes of a space before a study begins: configurations that may be good, and how sure that is.

A belief stands in the study's manifest whole, so that a study goes on as it began, whatever became of a file or of an
earlier study. Numbers are believed on the scale on which a sampler draws them: 0 to 1 over the range, logarithmic
where the space says so. Densities are relative to the uniform one: 1 where nothing is believed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import ndtr, ndtri

from sctune.search.space.definition import Space, Values
from sctune.search.space.scale import from_unit, unit_cell

WIDTH = 0.2
"""Of a belief that says nothing else: standard deviation as a share of the range, or chance of any choice whatever."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Centre(_Frozen):
    """A configuration that is believed in. values: some parameters of the space, as the configuration has them.

    widths: in (0, 1], of parameters with another one than WIDTH. weight: among the centres of a prior.
    """

    values: dict[str, Any] = Field(min_length=1)
    widths: dict[str, float] = {}
    weight: float = Field(1.0, gt=0)


class Told(_Frozen):
    """A trial of an earlier study where it lies in this space. merit: in [-1, 1], from its place in that study."""

    values: dict[str, Any]
    merit: float


class Prior(_Frozen):
    """kind: where it comes from. name: what people call it. centres: the likeliest first.

    trials: of an earlier study; where there are some, their order is what the study compares with what it sees.
    note: what of it applies, for people.
    """

    kind: Literal["paper", "study", "file"]
    name: str
    centres: tuple[Centre, ...] = Field(min_length=1)
    trials: tuple[Told, ...] = ()
    note: str = ""


def density(distribution: BaseDistribution, centre: Any, width: float, stored: Any) -> float:
    """Of a value under a belief, relative to the uniform density.

    A normal distribution cut off at the ends of the range; of unordered choices the centre, but with chance `width`
    any of them alike. centre, stored: as Optuna stores them.
    """
    if isinstance(distribution, CategoricalDistribution):
        return width + (len(distribution.choices) * (1 - width) if stored == centre else 0.0)
    middle = sum(unit_cell(distribution, centre)) / 2
    low, high = unit_cell(distribution, stored)
    mass = float(ndtr((1 - middle) / width) - ndtr(-middle / width))
    if high > low:
        return float(ndtr((high - middle) / width) - ndtr((low - middle) / width)) / (high - low) / mass
    return math.exp(-(((low - middle) / width) ** 2) / 2) / (width * math.sqrt(2 * math.pi)) / mass


def draw(distribution: BaseDistribution, centre: Any, width: float, rng: np.random.Generator) -> Any:
    """A value of the belief that `density` describes, as Optuna stores it."""
    place = rng.random()
    if isinstance(distribution, CategoricalDistribution):
        choices = distribution.choices
        return centre if place >= width else choices[min(int(place / width * len(choices)), len(choices) - 1)]
    middle = sum(unit_cell(distribution, centre)) / 2
    low, high = ndtr(-middle / width), ndtr((1 - middle) / width)
    return from_unit(distribution, min(max(middle + width * float(ndtri(low + place * (high - low))), 0.0), 1.0))


class Belief:
    """A centre over the space's distributions. Points are parameters as Optuna stores them."""

    def __init__(self, space: Space, values: Values, widths: Mapping[str, float], usual: float = WIDTH) -> None:
        self._distributions = {name: space.by_name[name].distribution() for name in values}
        self._stored = space.encode(values)
        self._widths = {name: widths.get(name, usual) for name in values}

    def names(self, name: str) -> bool:
        return name in self._stored

    def draw(self, name: str, rng: np.random.Generator) -> Any:
        return draw(self._distributions[name], self._stored[name], self._widths[name], rng)

    def log_density(self, point: Mapping[str, Any]) -> float:
        """Of what it names and the point holds, relative to uniform; 0 where that is nothing."""
        return sum(math.log(max(self._density(name, point[name]), 1e-300)) for name in self._shared(point))

    def closeness(self, point: Mapping[str, Any]) -> float:
        """In [0, 1]: 1 at the centre, whatever the number of parameters; 0 where the point holds none of them."""
        shared = self._shared(point)
        if not shared:
            return 0.0
        ratios = (self._density(name, point[name]) / self._density(name, self._stored[name]) for name in shared)
        return math.exp(sum(math.log(max(ratio, 1e-300)) for ratio in ratios) / len(shared))

    def _shared(self, point: Mapping[str, Any]) -> list[str]:
        return [name for name in self._stored if name in point]

    def _density(self, name: str, stored: Any) -> float:
        return density(self._distributions[name], self._stored[name], self._widths[name], stored)


def centre_point(space: Space, centre: Centre) -> Values:
    """The part of a point that a centre names, without what its other values make inactive."""
    point: Values = {}
    undecided: set[str] = set()
    for parameter in space.parameters:
        known = not any(space.decider(other) in undecided for other, _ in parameter.conditions)
        if known and not space.is_active(parameter, point):
            continue
        if parameter.name in centre.values:
            point[parameter.name] = centre.values[parameter.name]
        else:
            undecided.add(parameter.name)
    return point


def start_points(space: Space, priors: Sequence[Prior]) -> list[tuple[str, Values]]:
    """Name and likeliest configuration of each prior, to be tried first, where no start point contains it already."""
    found: list[tuple[str, Values]] = []
    for prior in priors:
        point = centre_point(space, prior.centres[0])
        known = [*space.start, *(other for _, other in found)]
        if point and not any(all(other.get(name, ()) == value for name, value in point.items()) for other in known):
            found.append((prior.name, point))
    return found
