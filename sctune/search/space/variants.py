"""Variants of a search space: one searched choice, `variant`, that sets several configuration fields at once."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sctune.config import FIXED_FIELDS
from sctune.errors import SpaceError
from sctune.search.space.checks import check_fields
from sctune.search.space.parameter import Choice, Parameter, as_number

if TYPE_CHECKING:
    from sctune.search.space.definition import Space

VARIANT = "variant"
"""Name of the parameter that chooses; no field of the configuration has it."""

Variants = dict[str, dict[str, Any]]
"""Variant -> dotted name -> value, in the order of the file."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,79}")


def parse_variants(tree: Mapping[str, Any], where: str) -> Variants:
    """`variants:` of a space file; empty where it has none.

    Raises SpaceError for a name that is no plain word, an unknown field, and one that belongs to the task.
    """
    if "variants" not in tree:
        return {}
    listed = tree["variants"]
    if not isinstance(listed, Mapping):
        raise SpaceError(f"{where}: variants: write name: {{field: value, ...}} for each, got {listed!r}")
    if not listed:
        raise SpaceError(f"{where}: variants: at least one is needed")
    variants: Variants = {}
    for name, fields in listed.items():
        # YAML reads no, on and 3 as something else than the words that were meant
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise SpaceError(
                f"{where}: variants: {name!r} is no name; begin with a letter, then letters, digits, '.', '_' and '-'"
                " (quote words such as 'no')"
            )
        if not isinstance(fields, Mapping):
            raise SpaceError(f"{where}: variants.{name}: write {{field: value, ...}}, got {fields!r}")
        texts = {str(field): as_number(value) for field, value in fields.items()}
        check_fields(texts, f"{where}: variants.{name}")
        variants[name] = texts
    return variants


def variant_parameters(variants: Variants) -> tuple[Parameter, ...]:
    """The first parameter of a space with variants: a grid over their names, without an order."""
    return (Choice(VARIANT, (), tuple(variants), ordered=False, grid=True),) if variants else ()


def searched_names(variants: Variants) -> set[str]:
    """What a command line must leave alone: `variant`, and every field that some variant sets."""
    return {VARIANT, *(field for fields in variants.values() for field in fields)} if variants else set()


def check_set_once(variants: Variants, parameters: Sequence[Parameter], where: str) -> None:
    """A variant sets no field that is drawn in it; one that the parameter's own `when:` excludes may set it."""
    for name, fields in variants.items():
        for parameter in parameters:
            if parameter.name in fields and _may_be_drawn(parameter, {VARIANT: name, **fields}):
                raise SpaceError(
                    f"{where}: {parameter.name} is varied under parameters and set by variant {name}; keep one"
                )


def _may_be_drawn(parameter: Parameter, fields: Mapping[str, Any]) -> bool:
    return all(other not in fields or fields[other] in allowed for other, allowed in parameter.when)


def shared_fields(variants: Variants, base: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values that variants give to fields which must be the same for all trials of a study; those belong to the base.

    base: flat values that a variant without the field keeps. Raises SpaceError where two variants would differ.
    """
    shared: dict[str, Any] = {}
    for field in FIXED_FIELDS:
        if not any(field in fields for fields in variants.values()):
            continue
        values = {name: fields.get(field, base[field]) for name, fields in variants.items()}
        first, value = next(iter(values.items()))
        for name, other in values.items():
            if other != value:
                raise SpaceError(
                    f"{where}: variants: {field} is the same for all trials of a study, and {first} has {value!r}, "
                    f"{name} {other!r}; give it one value under set:"
                )
        shared[field] = value
    return shared


def without_shared(variants: Variants) -> Variants:
    """Variants without the fields that the base holds for all of them (`shared_fields`)."""
    return {
        name: {field: value for field, value in fields.items() if field not in FIXED_FIELDS}
        for name, fields in variants.items()
    }


def check_distinct(space: Space, where: str) -> None:
    """Two variants that make the same configuration would be trained twice and compared with each other."""
    if any(other == VARIANT for parameter in space.parameters for other, _ in parameter.when):
        return
    for first, second in itertools.combinations(space.variants, 2):
        if space.in_variant(first) | {VARIANT: second} == space.in_variant(second):
            raise SpaceError(f"{where}: variants: {first} and {second} make the same configuration; take one out")
