"""The points of a space: counted, listed, and the extreme ones that stand for all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sctune.search.space.parameter import Choice, Parameter

if TYPE_CHECKING:
    from sctune.search.space.definition import Space, Values

MAX_JOINT_CHECKS = 20_000
"""Up to this many extreme points are checked jointly; in larger spaces every pair of parameters is."""


def count_points(space: Space, index: int = 0, values: Values | None = None) -> int:
    """Number of points of a finite space, without listing them."""
    values = values or {}
    if index == len(space.parameters):
        return 1
    parameter = space.parameters[index]
    if not space.is_active(parameter, values):
        return count_points(space, index + 1, values)
    return sum(
        alike * count_points(space, index + 1, {**values, parameter.name: value})
        for value, alike in _told_apart(space, parameter)
    )


def _told_apart(space: Space, parameter: Parameter) -> list[tuple[Any, int]]:
    """The values that later conditions tell apart, and how many others each stands for; all alike where none looks."""
    count = parameter.count or 0
    looked_at = [
        allowed for later in space.parameters for other, allowed in later.conditions
        if space.decider(other) == parameter.name
    ]  # fmt: skip
    if not looked_at:
        return [(next(parameter.values()), count)]
    if isinstance(parameter, Choice):
        return [(value, 1) for value in parameter.values()]
    named = {parameter.key(value): value for allowed in looked_at for value in allowed if parameter.contains(value)}
    others = (value for value in parameter.values() if parameter.key(value) not in named)
    rest = [(value, count - len(named)) for value in itertools.islice(others, 1)]
    return [(value, 1) for value in named.values()] + rest


class AllValues:
    """Every value of a finite parameter in order, made as they are asked for: a fine step leaves millions."""

    def __init__(self, parameter: Parameter) -> None:
        self._parameter = parameter

    def __iter__(self) -> Iterator[Any]:
        return self._parameter.values()


def walk(
    space: Space, candidates: Mapping[str, Iterable[Any]], index: int = 0, values: Values | None = None
) -> Iterator[Values]:
    """All points that take their values from `candidates`; the first declared parameter varies slowest."""
    values = values or {}
    if index == len(space.parameters):
        yield values
        return
    parameter = space.parameters[index]
    if not space.is_active(parameter, values):
        yield from walk(space, candidates, index + 1, values)
        return
    for value in candidates[parameter.name]:
        yield from walk(space, candidates, index + 1, {**values, parameter.name: value})


def extreme_points(space: Space) -> Iterator[Values]:
    """All extreme points jointly when few, else all pairs of parameters with the others at one value.

    Every variant is tried with all of them.
    """
    probes = {parameter.name: parameter.probes() for parameter in space.parameters}
    joint = list(itertools.islice(walk(space, probes), MAX_JOINT_CHECKS + 1))
    if len(joint) <= MAX_JOINT_CHECKS:
        yield from joint
        return
    for pair in itertools.combinations(space.parameters, 2):
        pinned = {name: values[:1] for name, values in probes.items()} | _enabling(space, pair)
        free = {*pair, space.parameters[0]} if space.variants else pair
        for chosen in _few(pair, probes):
            yield from walk(space, pinned | {parameter.name: chosen[parameter.name] for parameter in free})


def _few(pair: Sequence[Parameter], probes: Mapping[str, list[Any]]) -> list[Mapping[str, list[Any]]]:
    """The probes of a pair; of two long lists all values of one with the first and the last of the other."""
    first, second = (parameter.name for parameter in pair)
    if len(probes[first]) * len(probes[second]) <= MAX_JOINT_CHECKS:
        return [probes]
    return [{**probes, name: [probes[name][0], probes[name][-1]]} for name in (first, second)]


def _enabling(space: Space, pair: Sequence[Parameter]) -> dict[str, list[Any]]:
    """Values of the parameters that those of `pair` depend on, such that their conditions hold."""
    enabling: dict[str, list[Any]] = {}
    todo = list(pair)
    while todo:
        parameter = todo.pop()
        for other, allowed in parameter.conditions:
            if other not in space.by_name:
                continue
            if space.base_meets(parameter, other, allowed):
                # it may hold because `other` is not active: nothing above it is pinned
                enabling |= {name: space.by_name[name].probes() for name in _line(space, other)}
                continue
            enabling[other] = [value for value in enabling.get(other, allowed) if value in allowed]
            todo.append(space.by_name[other])
    return enabling


def _line(space: Space, name: str) -> set[str]:
    """A parameter, and all that it depends on."""
    above = (other for other, _ in space.by_name[name].conditions if other in space.by_name)
    return {name}.union(*(_line(space, other) for other in above))
