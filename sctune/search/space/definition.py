"""Search spaces: a YAML file becomes a checked, conditional space over the fields of TrialConfig.

Every value that a space can produce is tried on the configuration when the space is loaded, so that an impossible
combination is refused before a worker starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import Trial

from sctune.config import TrialConfig, method_entries, method_entry
from sctune.errors import ConfigError, SpaceError, nearest
from sctune.search.space.activation import activation_conditions, with_needs
from sctune.search.space.base import settled_base
from sctune.search.space.checks import (
    check_conditions,
    check_feasible,
    check_fields,
    check_not_fixed,
    check_overrides,
    check_start,
)
from sctune.search.space.enumeration import AllValues, count_points, extreme_points, walk
from sctune.search.space.named import space_content
from sctune.search.space.parameter import Parameter, Range, as_number, parse_parameter
from sctune.search.space.setting import possible_in
from sctune.search.space.variants import (
    VARIANT,
    Variants,
    check_distinct,
    check_set_once,
    parse_variants,
    searched_names,
    shared_fields,
    variant_parameters,
    without_shared,
)

FORMAT_VERSION = 1
KEYS = ("format_version", "name", "description", "variants", "parameters", "set", "start")

Values = dict[str, Any]
"""Name -> value of the active parameters of one point: dotted fields, and `variant` where the space has variants."""


@dataclass(frozen=True)
class Space:
    """What a study searches.

    parameters: in the order in which they are drawn; `variant` is the first of a space with variants.
    base: the complete configuration that a point is merged over (profile, then `set:`, then the command line); where
    these do not go together without a point, it has one's values for the fields that all points set.
    variants: name -> the fields that it sets; one that a variant does not name keeps its base value there.
    start: points tried first; they may leave parameters to the sampler. notes: lines for the user.
    """

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    fixed: Mapping[str, Any]
    start: tuple[Values, ...]
    base: TrialConfig
    source: Mapping[str, Any]
    variants: Variants
    notes: tuple[str, ...] = ()

    @property
    def epochs(self) -> int:
        """Of a full run of a method that trains; one where none of the space does."""
        trains = any(method_entry(name).trains for name in self.field_values("method.name"))
        return self.base.budget.epochs if trains else 1

    def suggest(self, trial: Trial) -> Values:
        """Draw the active parameters in the order of declaration; gives what the configuration gets."""
        values: Values = {}
        for parameter in self.parameters:
            if self.is_active(parameter, values):
                values[parameter.name] = parameter.suggest(trial)
        return values

    def is_active(self, parameter: Parameter, values: Mapping[str, Any]) -> bool:
        """Whether its conditions hold, given the values of the active parameters declared before it.

        A condition of its own on a parameter that is not active does not hold. A need asks what is trained with:
        there the base value.
        """
        # what is drawn stands before what the variant leaves at the base's value
        held = {**self.in_variant(values[VARIANT]), **values} if VARIANT in values else values
        if any(other not in held and self.decider(other) in self.by_name for other, _ in parameter.when):
            return False
        if any(other not in held and other in self.variant_fields for other, _ in parameter.needs):
            return False
        return all(held.get(other, self._flat_base.get(other)) in allowed for other, allowed in parameter.conditions)

    def assignments(self, values: Mapping[str, Any]) -> Values:
        """What a point (or a part of one) sets in the configuration: dotted names only, its variant spelt out."""
        chosen = self.variants[values[VARIANT]] if VARIANT in values else {}
        return {**chosen, **{name: value for name, value in values.items() if name != VARIANT}}

    def config(self, values: Mapping[str, Any]) -> TrialConfig:
        """The complete configuration of a point; of a part of one, with the base for the rest."""
        return self.base.override(self.assignments(values))

    def in_variant(self, name: str) -> Values:
        """`variant` itself and every field that some variant sets, as they are in variant `name`."""
        fields = self.variants[name]
        return {VARIANT: name} | {field: fields.get(field, self._flat_base[field]) for field in self.variant_fields}

    def decider(self, name: str) -> str:
        """The parameter that decides what a condition on `name` sees: `variant` for fields that variants alone set."""
        return VARIANT if name in self.variant_fields and name not in self.by_name else name

    def field_values(self, field: str) -> list[Any]:
        """All values that a field of the configuration takes in the space; the field must not be continuous."""
        # a parameter that is not active leaves the base value
        rest = [self._flat_base[field]] if field in self.by_name else []
        return list(dict.fromkeys([*rest, *self.needed_values(field)]))

    def needed_values(self, field: str) -> list[Any]:
        """The values of a field that a need on it can meet: drawn, set by variants, or the base's."""
        drawn = list(self.by_name[field].values()) if field in self.by_name else []
        if field in self.variant_fields:
            return [*drawn, *(self.in_variant(name)[field] for name in self.variants)]
        if field not in self.by_name:
            return [self._flat_base[field]]
        return [*drawn, *([self._flat_base[field]] if self.by_name[field].when else [])]

    def base_meets(self, parameter: Parameter, other: str, allowed: tuple[Any, ...]) -> bool:
        """Whether a need of `parameter` may hold where `other` is not active, and so leaves the base value."""
        parent = self.by_name.get(other) if (other, allowed) in parameter.needs else None
        return parent is not None and bool(parent.when) and self._flat_base[other] in allowed

    def example(self) -> Values:
        """A part of a point to try things with: the first start point, with the first variant where it names none."""
        first = {VARIANT: next(iter(self.variants))} if self.variants else {}
        return {**first, **(self.start[0] if self.start else {})}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {parameter.name: parameter.distribution() for parameter in self.parameters}

    @property
    def is_grid(self) -> bool:
        """Whether all parameters are written as `values: [...]`."""
        return all(parameter.grid for parameter in self.parameters)

    def size(self) -> int | None:
        """Number of distinct points; None when a parameter is continuous."""
        reachable = [parameter for parameter in self.parameters if self.can_be_active(parameter)]
        if any(parameter.count is None for parameter in reachable):
            return None
        return count_points(self)

    def points(self) -> Iterator[Values]:
        """All points of a finite space, one at a time; the first declared parameter varies slowest."""
        return walk(self, {parameter.name: AllValues(parameter) for parameter in self.parameters})

    def probe_points(self) -> Iterator[Values]:
        """Points whose feasibility stands for that of all."""
        return extreme_points(self)

    def key(self, values: Mapping[str, Any]) -> str:
        """Equal for two points exactly when their active parameters have the same values."""
        active = [parameter for parameter in self.parameters if parameter.name in values]
        return "|".join(f"{parameter.name}={parameter.key(values[parameter.name])}" for parameter in active)

    def encode(self, values: Mapping[str, Any]) -> Values:
        """Values as Optuna stores them (for enqueue_trial and FrozenTrial)."""
        return {name: self.by_name[name].encode(value) for name, value in values.items()}

    def decode(self, stored: Mapping[str, Any]) -> Values:
        """Optuna's stored parameters as values, in the order of declaration."""
        return {p.name: p.decode(stored[p.name]) for p in self.parameters if p.name in stored}

    def to_dict(self) -> dict[str, Any]:
        """The space as its file has it; `from_dict` reads it back."""
        return {**self.source, "format_version": FORMAT_VERSION, "name": self.name}

    @staticmethod
    def from_dict(tree: Mapping[str, Any], config: TrialConfig) -> Space:
        """A stored space; `config` is the stored base, with `set:` and the command line merged already."""
        tree = {"name": "space", **tree}
        return _build(tree, config, str(tree["name"]))

    def can_be_active(self, parameter: Parameter) -> bool:
        """Whether some point holds it; conditions on fixed fields are settled by the base."""
        return any(self._possible(parameter, settled) for settled in self._settled())

    def always_active(self, parameter: Parameter) -> bool:
        """Whether every point holds it."""
        return all(self._certain(parameter, settled) for settled in self._settled())

    def _settled(self) -> list[Values]:
        """What conditions on fields that are not drawn see: the base, in each variant."""
        return [{**self._flat_base, **self.in_variant(name)} for name in self.variants] or [self._flat_base]

    def _possible(self, parameter: Parameter, settled: Values) -> bool:
        for other, allowed in parameter.conditions:
            parent = self.by_name.get(other)
            if parent is None or other == VARIANT:
                met = settled[other] in allowed
            elif self.base_meets(parameter, other, allowed) and not self._certain(parent, settled):
                met = True
            else:
                met = any(map(parent.contains, allowed)) and self._possible(parent, settled)
            if not met:
                return False
        return True

    def _certain(self, parameter: Parameter, settled: Values) -> bool:
        for other, allowed in parameter.conditions:
            parent = self.by_name.get(other)
            if parent is None or other == VARIANT:
                met = settled[other] in allowed
            else:
                met = all(value in allowed for value in parent.values()) and self._certain(parent, settled)
            if not met:
                return False
        return True

    @cached_property
    def by_name(self) -> dict[str, Parameter]:
        return {parameter.name: parameter for parameter in self.parameters}

    @cached_property
    def variant_fields(self) -> tuple[str, ...]:
        """Every field that some variant sets."""
        return tuple(dict.fromkeys(field for fields in self.variants.values() for field in fields))

    @cached_property
    def _flat_base(self) -> dict[str, Any]:
        # fields of a method that only some points choose are at their defaults there
        own = {
            f"method.{name}": field.default
            for entry in method_entries()
            for name, field in entry.section.model_fields.items()
        }
        return own | self.base.flat()


def load_space(name_or_path: str | Path, base: TrialConfig, overrides: Mapping[str, Any] | None = None) -> Space:
    """A space by its shipped name, from a file, or of a method by its name, over a profile's configuration.

    overrides: dotted values of the command line; they win over the space's `set:`. Raises SpaceError naming the
    file and the key: an unknown or task-owned field, a bad range, condition or start point, an infeasible value.
    """
    content, where = space_content(name_or_path)
    return space_of(content, where, base, overrides)


def space_of(
    content: Mapping[str, Any], where: str, base: TrialConfig, overrides: Mapping[str, Any] | None = None
) -> Space:
    """A space from what its file holds; where: what messages call it. Arguments and errors of `load_space`."""
    tree, notes = possible_in(content, base.data.setting)
    tree.setdefault("name", Path(where).stem)
    fixed = _mapping(tree, "set", where)
    overrides = dict(overrides or {})
    variants = parse_variants(tree, where)
    check_overrides(overrides, {*_mapping(tree, "parameters", where), *searched_names(variants)}, where)
    check_fields(fixed, f"{where}: set")
    values = {name: as_number(value) for name, value in fixed.items()} | overrides
    shared = shared_fields(variants, base.flat() | values, where)
    try:
        merged = settled_base(base, values | shared, lambda untried: _build(tree, untried, where))
    except SpaceError:
        raise
    except ConfigError as problem:
        raise SpaceError(f"{where}: set: {problem}") from None
    space = _build(tree, merged, where)
    check_distinct(space, where)
    check_feasible(space, where)
    steps = [parameter.note for parameter in space.parameters if isinstance(parameter, Range)]
    return replace(space, notes=(*notes, *filter(None, steps)))


def _build(tree: dict[str, Any], base: TrialConfig, where: str) -> Space:
    for key in tree:
        if key not in KEYS:
            raise SpaceError(f"{where}: unknown key {key!r}; {nearest(str(key), KEYS)}")
    if tree.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise SpaceError(f"{where}: format_version {tree['format_version']!r} is not {FORMAT_VERSION}; update sctune")
    entries = _mapping(tree, "parameters", where)
    variants = parse_variants(tree, where)
    if not entries and not variants:
        raise SpaceError(f"{where}: parameters: at least one is needed (or variants)")
    check_fields(entries, f"{where}: parameters")
    check_not_fixed(entries, f"{where}: parameters")
    varied = [parse_parameter(name, body, f"{where}: {name}") for name, body in entries.items()]
    check_set_once(variants, varied, where)
    parameters = (*variant_parameters(variants), *varied)
    start = tree.get("start", [])
    if not isinstance(start, list) or not all(isinstance(point, Mapping) for point in start):
        raise SpaceError(f"{where}: start: must be a list of points, got {start!r}")
    points = tuple({name: as_number(value) for name, value in point.items()} for point in start)
    # as text: a date or .nan could not be stored with the study
    texts = {key: str(tree[key]) for key in ("name", "description") if key in tree}
    fixed = _mapping(tree, "set", where)
    own_fields = without_shared(variants)
    space = Space(
        texts["name"], texts.get("description", ""), parameters, fixed, points, base, tree | texts, own_fields
    )
    conditions = activation_conditions()
    needed = [conditions.get(parameter.name, ()) for parameter in parameters]
    taken = {other: space.needed_values(other) for when in needed for other, _ in when}
    space = replace(space, parameters=with_needs(parameters, conditions, taken))
    check_conditions(space, where)
    for index, point in enumerate(points):
        check_start(space, point, f"{where}: start[{index}]")
    return space


def _mapping(tree: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = tree.get(key) or {}
    if not isinstance(value, Mapping):
        raise SpaceError(f"{where}: {key}: must hold keys and values, got {value!r}")
    return {str(name): content for name, content in value.items()}
