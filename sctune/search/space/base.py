"""The configuration that the points of a space are merged over: a profile with the values that are fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sctune.config import TrialConfig, is_field
from sctune.errors import ConfigError

if TYPE_CHECKING:
    from sctune.search.space.definition import Space, Values


def settled_base(base: TrialConfig, values: Mapping[str, Any], build: Callable[[TrialConfig], Space]) -> TrialConfig:
    """A profile with the fixed values; where these do not go together, with a point's values for what all points set.

    Nothing is trained with the base's value of such a field, so it must refuse no space. build: the space over a base.
    Raises ConfigError for an unknown name, a bad value, and values that do not go together with any point either.
    """
    try:
        return base.override(values)
    except ConfigError:
        untried = _with_each(base, values)
        if untried is None:
            raise
        for chosen in _always_set(build(untried)):
            with suppress(ConfigError):
                return untried.override(chosen)
        raise


def _with_each(base: TrialConfig, values: Mapping[str, Any]) -> TrialConfig | None:
    """The values put in though they may not go together; None where one of them is bad by itself."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        if not is_field(name) or not section:
            return None
        sections.setdefault(section, getattr(base, section).model_dump())[leaf] = value
    try:
        # sections check their own fields; what goes with what is checked by the whole
        checked = {name: type(getattr(base, name)).model_validate(fields) for name, fields in sections.items()}
    except ValidationError:
        return None
    return base.model_copy(update=checked)


def _always_set(space: Space) -> Iterator[Values]:
    """What points set of the fields that every point sets, each such set once."""
    always = {parameter.name for parameter in space.parameters if space.always_active(parameter)}
    always |= {field for field in space.variant_fields if all(field in fields for fields in space.variants.values())}
    seen = set()
    for point in chain([space.example()], space.probe_points()):
        chosen = {name: value for name, value in space.assignments(point).items() if name in always}
        if (key := tuple(chosen.items())) not in seen:
            seen.add(key)
            yield chosen
