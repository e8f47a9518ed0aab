"""Which fields of a configuration mean nothing without another: no patch count without a patch head.

A space need not say so: such a parameter is drawn only where it has an effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sctune.config import FIELD_NAMES, method_entries
from sctune.search.space.parameter import Parameter, When

COMMON: dict[str, When] = {
    # batches have normal slots only where no anomaly is seen
    "data.balance": (("data.setting", ("general", "hard")),),
    # several feature maps stand in for the one
    "model.tap": (("model.taps", (None,)),),
}
"""Field -> conditions under which it matters, whatever the method."""


def activation_conditions() -> dict[str, When]:
    """Field -> conditions under which it matters: those of its methods, and that one of these is chosen."""
    entries = method_entries()
    own = (f"method.{name}" for entry in entries for name in entry.section.model_fields if name != "name")
    found = dict(COMMON)
    for name in dict.fromkeys((*FIELD_NAMES, *own)):
        users = [entry for entry in entries if entry.looks_at(name)]
        by_method: When = () if len(users) == len(entries) else (("method.name", tuple(one.name for one in users)),)
        # methods that share a field agree on what it needs, or it has no conditions
        shared = {entry.conditions.get(name, ()) for entry in users}
        needs = shared.pop() if len(shared) == 1 else ()
        if by_method or needs:
            found[name] = (*found.get(name, ()), *by_method, *needs)
    return found


def with_needs(
    parameters: Sequence[Parameter], conditions: Mapping[str, When], taken: Mapping[str, Sequence[Any]]
) -> tuple[Parameter, ...]:
    """The parameters with what their fields need; where that looks at a later one, they go behind it.

    conditions: as of `activation_conditions`. taken: field -> all values that it takes in the space, the base's too
    where its parameter may be inactive. A need that always holds is left out, and so is one on a field that the
    parameter's own `when:` looks at.
    """
    names = {parameter.name for parameter in parameters}
    placed: list[Parameter] = []
    waiting: list[Parameter] = []
    for parameter in parameters:
        needs = _needed(parameter, conditions.get(parameter.name, ()), taken)
        waiting.append(replace(parameter, needs=needs) if needs else parameter)
        while ready := next((one for one in waiting if not _waits(one, names, placed, waiting)), None):
            placed.append(ready)
            waiting.remove(ready)
    return (*placed, *waiting)


def _waits(parameter: Parameter, names: set[str], placed: Sequence[Parameter], waiting: Sequence[Parameter]) -> bool:
    before, held = {one.name for one in placed}, {one.name for one in waiting}
    # a condition of its own on one that is held back holds it back too; on a later one it stays a mistake of the file
    return any(other in names - before for other, _ in parameter.needs) or any(
        other in held for other, _ in parameter.when
    )


def _needed(parameter: Parameter, conditions: When, taken: Mapping[str, Sequence[Any]]) -> When:
    own = {other for other, _ in parameter.when}
    more = []
    for other, wanted in conditions:
        if other in own or set(taken[other]) <= set(wanted):
            continue
        # a need names only what is taken; where that is nothing, the parameter is never active
        more.append((other, tuple(value for value in wanted if value in taken[other]) or wanted))
    return tuple(more)
