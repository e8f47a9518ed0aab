"""How each method enters the space over all of them: as a profile has it, with what is searched of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sctune.config import FIXED_FIELDS, TASK_FIELDS, MethodEntry, TrialConfig
from sctune.errors import ConfigError
from sctune.methods.named import method_values
from sctune.search.space.parameter import Parameter, parse_parameter, parse_when

NAME, BACKBONE = "method.name", "model.backbone"

Body = dict[str, Any]
"""What is searched of a field, as under `parameters:` of a space file; `when` without the method."""


@dataclass(frozen=True)
class Recipe:
    """A method in the space. config: as it begins. values: what its variant sets beside the name.

    searched: field -> Body, parents before what hangs on them. left: of its published values, what all trials share and
    the study has otherwise.
    """

    entry: MethodEntry
    config: TrialConfig
    values: dict[str, Any]
    searched: dict[str, Body]
    left: dict[str, Any]

    @property
    def name(self) -> str:
        return self.entry.name


def recipe_of(entry: MethodEntry, profile: str, base: TrialConfig, overrides: Mapping[str, Any]) -> Recipe:
    """The base under a method, with its published values for the profile; the command line's overrides win.

    Of its published names the first counts that needs no other backbone than the study's; the base's own method is as
    the base has it. Raises ConfigError where these values do not go together, or what is searched is written wrongly.
    """
    given = {NAME: entry.name} | {field: value for field, value in overrides.items() if entry.looks_at(field)}
    published = {} if entry.name == base.method.name else _published(entry, profile, base, overrides)
    own = {field: value for field, value in published.items() if field not in given and field not in TASK_FIELDS}
    config = base.override({field: value for field, value in own.items() if field not in FIXED_FIELDS} | given)
    usual: dict[str, Any] = {}
    with suppress(ConfigError):
        usual = base.override(given).flat()
    flat, shared = config.flat(), base.flat()
    searched = _searched(entry, flat, overrides)
    set_here = [field for field in own if field not in FIXED_FIELDS and usual.get(field, ()) != flat[field]]
    asked = [field for field in given if field.startswith("method.") and field != NAME]
    return Recipe(
        entry=entry,
        config=config,
        # as the configuration has them: a list may be written in several ways
        values={field: flat[field] for field in (*set_here, *asked) if field not in searched},
        searched=searched,
        left={field: value for field, value in own.items() if field in FIXED_FIELDS and shared[field] != value},
    )


def _published(entry: MethodEntry, profile: str, base: TrialConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    named = (method_values(name, profile) for name in entry.published)
    own = overrides.get(BACKBONE, base.model.backbone)
    return next((values for values in named if values.get(BACKBONE, own) == own), {})


def _searched(entry: MethodEntry, flat: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Body]:
    """What is searched of a method, where it can matter; conditions that the configuration settles are left out."""
    fields = [field for field in entry.hyperparameters if field not in overrides and field not in FIXED_FIELDS]
    found: dict[str, Body] = {}
    parents: dict[str, Parameter] = {}
    while fields:
        # a condition looks at parameters declared before
        field = next((one for one in fields if not _conditions(entry, one).keys() & fields), fields[0])
        fields.remove(field)
        body = dict(entry.hyperparameters[field])
        when = _open_conditions(_conditions(entry, field), parents, flat)
        if when is not None:
            parents[field] = parse_parameter(field, body, f"method {entry.name}: {field}")
            found[field] = body | {"when": when}
    return found


def _conditions(entry: MethodEntry, field: str) -> dict[str, tuple[Any, ...]]:
    """What must hold for a field to matter: of the method, and of the parameter itself, which wins."""
    body = entry.hyperparameters[field]
    return dict(entry.conditions.get(field, ())) | dict(parse_when(body, f"method {entry.name}: {field}"))


def _open_conditions(
    conditions: Mapping[str, tuple[Any, ...]], parents: Mapping[str, Parameter], flat: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Those that are not met for certain, as under `when:`; None where one can never be met."""
    when: dict[str, Any] = {}
    for other, allowed in conditions.items():
        if other in parents:
            values = [value for value in allowed if parents[other].contains(value)]
            if not values:
                return None
            when[other] = values
        elif flat.get(other) not in allowed:
            return None
    return when
