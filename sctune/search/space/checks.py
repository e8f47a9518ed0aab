"""What a search space must satisfy; each check raises SpaceError naming the file and the key.

`where` is the start of the message: the file, and the place in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sctune.config import FIXED_FIELDS, TASK_FIELDS, TrialConfig, field_names, is_field
from sctune.config.methods import DEFAULT
from sctune.errors import ConfigError, SpaceError, nearest
from sctune.search.space.parameter import Parameter

if TYPE_CHECKING:
    from sctune.search.space.definition import Space, Values


def check_fields(names: Mapping[str, Any], where: str) -> None:
    for name in names:
        if name in TASK_FIELDS:
            raise SpaceError(f"{where}: {name} belongs to the task; set it with the options of `sctune search`")
        if not is_field(name):
            raise SpaceError(f"{where}: unknown configuration key {name!r}; {nearest(name, field_names())}")


def check_not_fixed(names: Mapping[str, Any], where: str) -> None:
    for name in names:
        if name in FIXED_FIELDS:
            raise SpaceError(f"{where}: {name} is the same for all trials of a study; give it one value under set:")


def check_overrides(overrides: Mapping[str, Any], varied: Collection[str], where: str) -> None:
    for name, value in overrides.items():
        if name in varied:
            raise SpaceError(f"--set {name}={value}: {where} varies it; take it out of the space to fix it")
        if name in TASK_FIELDS:
            raise SpaceError(f"--set {name}={value}: it belongs to the task; use the options of `sctune search`")


def check_conditions(space: Space, where: str) -> None:
    earlier: dict[str, Parameter] = {}
    names = [parameter.name for parameter in space.parameters]
    for parameter in space.parameters:
        for other, allowed in parameter.conditions:
            place = f"{where}: {parameter.name}.when.{other}"
            if other in names and other not in earlier:
                raise SpaceError(f"{place}: declared later or itself; a condition looks at parameters declared before")
            if space.base_meets(parameter, other, allowed):
                continue
            if other in earlier:
                _check_parent(earlier[other], allowed, place)
            elif other in space.variant_fields:
                _check_variant_condition(space.field_values(other), allowed, place)
            else:
                _check_fixed_condition(other, allowed, place)
        _check_some_variant(space, parameter, where)
        earlier[parameter.name] = parameter
    if not any(space.can_be_active(parameter) for parameter in space.parameters):
        method = space.base.method.name
        own = method != DEFAULT and space.base.entry.hyperparameters
        way = f"take --space {method}" if own else "take another one of `sctune spaces`"
        raise SpaceError(
            f"{where}: parameters: no condition holds with this configuration (method {method}), so nothing is "
            f"searched; {way}"
        )


def _check_parent(parent: Parameter, allowed: tuple[Any, ...], place: str) -> None:
    if parent.count is None:
        raise SpaceError(f"{place}: {parent.name} is continuous; a condition needs a parameter with listed values")
    for value in allowed:
        if not parent.contains(value):
            raise SpaceError(f"{place}: {value!r} is never drawn; it is {parent.describe()}")


def _check_variant_condition(values: Sequence[Any], allowed: tuple[Any, ...], place: str) -> None:
    for value in allowed:
        if value not in values:
            known = ", ".join(map(str, dict.fromkeys(values)))
            raise SpaceError(f"{place}: no variant has {value!r}; it is one of {known}")


def _check_some_variant(space: Space, parameter: Parameter, where: str) -> None:
    """Conditions that hold in one variant each, and never together, would leave a parameter that is never drawn."""
    settled = [space.in_variant(name) for name in space.variants]
    looked_at = [(other, allowed) for other, allowed in parameter.conditions if settled and other in settled[0]]
    if looked_at and not any(all(view[other] in allowed for other, allowed in looked_at) for view in settled):
        raise SpaceError(f"{where}: {parameter.name}.when: no variant meets all of its conditions")


def _check_fixed_condition(other: str, allowed: tuple[Any, ...], place: str) -> None:
    if not is_field(other):
        raise SpaceError(f"{place}: unknown configuration key; {nearest(other, field_names())}")
    section, _, leaf = other.rpartition(".")
    for value in allowed:
        try:
            # one section alone: a value may be valid though it does not go with the rest of this configuration
            TrialConfig.load({section: {leaf: value}} if section else {leaf: value})
        except ConfigError as problem:
            if str(problem).startswith(f"{other}={value!r}: "):
                raise SpaceError(f"{place}: {problem}") from None


def check_start(space: Space, point: Values, where: str) -> None:
    for name in point:
        if name not in space.by_name:
            raise SpaceError(f"{where}: {name!r} is not a parameter of the space; {nearest(name, space.by_name)}")
    seen: Values = {}
    undecided: set[str] = set()
    for parameter in space.parameters:
        known = not any(space.decider(other) in undecided for other, _ in parameter.conditions)
        if parameter.name not in point:
            # the sampler decides it, unless the point makes it inactive
            if not known or space.is_active(parameter, seen):
                undecided.add(parameter.name)
            continue
        value = point[parameter.name]
        if not parameter.contains(value):
            raise SpaceError(f"{where}: {parameter.name}={value!r} is outside the space; it is {parameter.describe()}")
        if not known or not space.is_active(parameter, seen):
            raise SpaceError(
                f"{where}: {parameter.name} is not active there; its condition is {dict(parameter.conditions)}"
            )
        seen[parameter.name] = value


def check_feasible(space: Space, where: str) -> None:
    for values in space.probe_points():
        try:
            space.config(values)
        except ConfigError as problem:
            point = ", ".join(f"{name}={value}" for name, value in values.items())
            raise SpaceError(f"{where}: the space holds an impossible point ({point}): {problem}") from None
