"""The space over all methods, `--space method`: made from what each method says of itself, for a profile.

It is a space like any other, with a variant for each method, and is stored with the study: one that goes on, or is
confirmed, has the methods that it began with, whatever is installed by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

from sctune.config import MethodEntry, TrialConfig, field_names, is_field, method_entries
from sctune.errors import ConfigError, nearest
from sctune.search.plan.recipes import NAME, Recipe, recipe_of
from sctune.search.space.definition import Space, Values, space_of
from sctune.search.space.named import ALL_METHODS
from sctune.search.space.parameter import Choice, Parameter
from sctune.search.space.variants import VARIANT

DESCRIPTION = "All methods, each with its own parameters"


def method_space(
    profile: str, base: TrialConfig, overrides: Mapping[str, Any], untold: Sequence[str] = (), trials: int | None = None
) -> Space:
    """The space over the base of a profile.

    overrides: dotted values of the command line; a field of single methods (`method.width`) is set in those. A field
    that is given is not searched. untold: methods whose usual configuration the study runs anyway (its references): the
    sampler chooses with what they begin. trials: of the study.

    A method that cannot be trained with these values is left out, and said so in the space's notes. Raises ConfigError
    for an override that no method takes, and where no method is left.
    """
    _check_overrides(overrides)
    recipes, notes = _recipes(profile, base, overrides)
    shared = {field: value for field, value in overrides.items() if not field.startswith("method.")}
    tree, more = _tree(recipes)
    space = space_of(tree, ALL_METHODS, base, shared)
    starts = [_start(space, recipe, recipe.name in untold) for recipe in recipes]
    whole = Space.from_dict({**space.to_dict(), "start": starts}, space.base)
    return replace(whole, notes=(*space.notes, *notes, *more, *_too_few(recipes, trials)))


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    for field, value in overrides.items():
        if field == NAME:
            raise ConfigError(
                f"--set {field}={value}: space {ALL_METHODS} searches over all methods; take --space {value} for this "
                "one alone"
            )
        if field.startswith("method.") and not is_field(field):
            raise ConfigError(f"unknown configuration key {field!r}; {nearest(field, field_names())}")


def _recipes(profile: str, base: TrialConfig, overrides: Mapping[str, Any]) -> tuple[list[Recipe], list[str]]:
    """The methods that can be trained, and a line for each that cannot, or lacks something of its recipe."""
    found: list[Recipe] = []
    notes: list[str] = []
    problems: list[ConfigError] = []
    for entry in method_entries():
        try:
            found.append(recipe_of(entry, profile, base, overrides))
        except ConfigError as problem:
            own = {field for field in overrides if field.startswith("method.") and entry.looks_at(field)}
            others = {field: value for field, value in overrides.items() if field not in own}
            if own and _can_be(entry, profile, base, others):
                # what was set for this very method is a mistake, and no reason to leave it out
                raise
            problems.append(problem)
            notes.append(f"method {entry.name} is left out of the space: {problem}")
    if not found:
        raise problems[0]
    left = [f"{field}={value} of {one.name}" for one in found for field, value in one.left.items()]
    if left:
        notes.append(f"left out of published recipes, since all trials of a study share it: {', '.join(left)}")
    return found, notes


def _can_be(entry: MethodEntry, profile: str, base: TrialConfig, overrides: Mapping[str, Any]) -> bool:
    try:
        recipe_of(entry, profile, base, overrides)
    except ConfigError:
        return False
    return True


def _tree(recipes: Sequence[Recipe]) -> tuple[dict[str, Any], list[str]]:
    """What a file of the space holds, without start points; and a line for each field that is not searched.

    A field that several methods search in the same way is one parameter. Conditions are spelt out, so that no method
    that is added later changes what a stored space means.
    """
    bodies: dict[str, dict[str, Any]] = {}
    users: dict[str, list[str]] = {}
    variants: dict[str, dict[str, Any]] = {}
    notes = []
    for one in recipes:
        variants[one.name] = {NAME: one.name, **one.values}
        for field, body in one.searched.items():
            if bodies.setdefault(field, body) == body:
                users.setdefault(field, []).append(one.name)
                continue
            value = variants[one.name][field] = one.config.flat()[field]
            first = users[field][0]
            notes.append(f"{field} of {one.name} stays at {value}, since {first} searches it in another way")
    parameters = {field: body | {"when": {NAME: users[field], **body["when"]}} for field, body in bodies.items()}
    tree = {"name": ALL_METHODS, "description": DESCRIPTION, "variants": variants, "parameters": parameters}
    return {key: content for key, content in tree.items() if content}, notes


def _start(space: Space, recipe: Recipe, untold: bool) -> Values:
    """A method's first point: as it is configured, or, untold, as the sampler likes."""
    values: Values = {VARIANT: recipe.name}
    if untold:
        return values
    flat = recipe.config.flat()
    for parameter in space.parameters:
        if parameter.name != VARIANT and space.is_active(parameter, values):
            values[parameter.name] = _nearest_value(parameter, flat[parameter.name])
    return values


def _nearest_value(parameter: Parameter, configured: Any) -> Any:
    """The configured value; where that is not among those searched, the nearest, of a list the first.

    Of a range the middle stands for what is no number, such as `auto`.
    """
    if parameter.contains(configured):
        return configured
    if isinstance(parameter, Choice):
        return parameter.choices[0]
    if isinstance(configured, int | float):
        return parameter.decode(min(max(configured, parameter.low), parameter.high))
    middle = sqrt(parameter.low * parameter.high) if parameter.log else (parameter.low + parameter.high) / 2
    return parameter.decode(middle)


def _too_few(recipes: Sequence[Recipe], trials: int | None) -> list[str]:
    if trials is None or trials >= len(recipes):
        return []
    missed = ", ".join(one.name for one in recipes[trials:])
    return [f"{trials} trials are too few to try each of {len(recipes)} methods once: {missed} will not be tried"]
