"""Search spaces: a YAML file becomes a checked, conditional space over the fields of TrialConfig.

Every value that a space can produce is tried on the configuration when the space is loaded, so that an impossible
combination is refused before a worker starts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import Trial

from sctune.config import TrialConfig, read_yaml
from sctune.errors import ConfigError, SpaceError, nearest
from sctune.search.parameter import Parameter, as_number, parse_parameter
from sctune.search.space_checks import (
    check_conditions,
    check_feasible,
    check_fields,
    check_not_fixed,
    check_overrides,
    check_start,
)

FORMAT_VERSION = 1
KEYS = ("format_version", "name", "description", "parameters", "set", "start")
MAX_JOINT_CHECKS = 20_000
"""Up to this many extreme points are checked jointly; in larger spaces every pair of parameters is."""

Values = dict[str, Any]
"""Dotted name -> value of the active parameters of one point."""


@dataclass(frozen=True)
class Space:
    """What a study searches.

    base: the complete configuration that a point is merged over (profile, then `set:`, then the command line).
    start: points tried first; they may leave parameters to the sampler.
    """

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    fixed: Mapping[str, Any]
    start: tuple[Values, ...]
    base: TrialConfig
    source: Mapping[str, Any]

    def suggest(self, trial: Trial) -> Values:
        """Draw the active parameters in the order of declaration; gives what the configuration gets."""
        values: Values = {}
        for parameter in self.parameters:
            if self.is_active(parameter, values):
                values[parameter.name] = parameter.suggest(trial)
        return values

    def is_active(self, parameter: Parameter, values: Mapping[str, Any]) -> bool:
        """Whether its conditions hold, given the values of the active parameters declared before it."""
        varied = self.by_name
        for other, allowed in parameter.when:
            if other in varied and other not in values:
                return False
            if (values[other] if other in varied else self._flat_base[other]) not in allowed:
                return False
        return True

    def config(self, values: Mapping[str, Any]) -> TrialConfig:
        """The complete configuration of a point."""
        return self.base.override(values)

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
        return self._count(0, {})

    def points(self) -> Iterator[Values]:
        """All points of a finite space; the first declared parameter varies slowest."""
        return self._walk({parameter.name: list(parameter.values()) for parameter in self.parameters})

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
        return _build(dict(tree), config, str(tree.get("name", "space")))

    def can_be_active(self, parameter: Parameter) -> bool:
        """Whether some point holds it; conditions on fixed fields are settled by the base."""
        return all(
            self.can_be_active(self.by_name[other]) if other in self.by_name else self._flat_base[other] in allowed
            for other, allowed in parameter.when
        )

    @cached_property
    def by_name(self) -> dict[str, Parameter]:
        return {parameter.name: parameter for parameter in self.parameters}

    @cached_property
    def _flat_base(self) -> dict[str, Any]:
        return self.base.flat()

    def _count(self, index: int, values: Values) -> int:
        if index == len(self.parameters):
            return 1
        parameter = self.parameters[index]
        if not self.is_active(parameter, values):
            return self._count(index + 1, values)
        # branch only where a later condition looks; elsewhere the values just multiply
        if any(parameter.name == other for later in self.parameters for other, _ in later.when):
            return sum(self._count(index + 1, {**values, parameter.name: value}) for value in parameter.values())
        return (parameter.count or 0) * self._count(index + 1, {**values, parameter.name: next(parameter.values())})

    def _walk(self, candidates: Mapping[str, Sequence[Any]], index: int = 0, values: Values | None = None) -> Any:
        values = values or {}
        if index == len(self.parameters):
            yield values
            return
        parameter = self.parameters[index]
        if not self.is_active(parameter, values):
            yield from self._walk(candidates, index + 1, values)
            return
        for value in candidates[parameter.name]:
            yield from self._walk(candidates, index + 1, {**values, parameter.name: value})

    def probe_points(self) -> Iterator[Values]:
        """Extreme points: all of them jointly when few, else all pairs of parameters with the others at one value."""
        probes = {parameter.name: parameter.probes() for parameter in self.parameters}
        joint = list(itertools.islice(self._walk(probes), MAX_JOINT_CHECKS + 1))
        if len(joint) <= MAX_JOINT_CHECKS:
            yield from joint
            return
        for pair in itertools.combinations(self.parameters, 2):
            pinned = {name: values[:1] for name, values in probes.items()} | self._enabling(pair)
            yield from self._walk(pinned | {parameter.name: probes[parameter.name] for parameter in pair})

    def _enabling(self, pair: Sequence[Parameter]) -> dict[str, list[Any]]:
        """Values of the parameters that those of `pair` depend on, such that their conditions hold."""
        enabling: dict[str, list[Any]] = {}
        todo = list(pair)
        while todo:
            for other, allowed in todo.pop().when:
                if other in self.by_name:
                    enabling[other] = [value for value in enabling.get(other, allowed) if value in allowed]
                    todo.append(self.by_name[other])
        return enabling


def shipped_spaces() -> dict[str, Path]:
    """Name -> file of the spaces that come with sctune."""
    inside = Path(str(files("sctune").joinpath("search_spaces")))
    # an editable install has them beside the package, as the repository does
    folder = inside if inside.is_dir() else inside.parent.parent / "search_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_space(name_or_path: str | Path, base: TrialConfig, overrides: Mapping[str, Any] | None = None) -> Space:
    """A space by its shipped name or from a file, over a profile's configuration.

    overrides: dotted values of the command line; they win over the space's `set:`. Raises SpaceError naming the
    file and the key: an unknown or task-owned field, a bad range, condition or start point, an infeasible value.
    """
    shipped = shipped_spaces()
    path = shipped.get(str(name_or_path), Path(name_or_path))
    if str(name_or_path) not in shipped and not (path.exists() or path.suffix in (".yaml", ".yml")):
        raise SpaceError(f"unknown space {str(name_or_path)!r}; {nearest(str(name_or_path), shipped)}")
    tree = read_yaml(path, SpaceError)
    tree.setdefault("name", path.stem)
    where = str(path)
    fixed = _mapping(tree, "set", where)
    overrides = dict(overrides or {})
    check_overrides(overrides, _mapping(tree, "parameters", where), where)
    check_fields(fixed, f"{where}: set")
    try:
        merged = base.override({name: as_number(value) for name, value in fixed.items()} | overrides)
    except ConfigError as problem:
        raise SpaceError(f"{where}: set: {problem}") from None
    space = _build(tree, merged, where)
    check_feasible(space, where)
    return space


def _build(tree: dict[str, Any], base: TrialConfig, where: str) -> Space:
    for key in tree:
        if key not in KEYS:
            raise SpaceError(f"{where}: unknown key {key!r}; {nearest(str(key), KEYS)}")
    if tree.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise SpaceError(f"{where}: format_version {tree['format_version']!r} is not {FORMAT_VERSION}; update sctune")
    entries = _mapping(tree, "parameters", where)
    if not entries:
        raise SpaceError(f"{where}: parameters: at least one is needed")
    check_fields(entries, f"{where}: parameters")
    check_not_fixed(entries, f"{where}: parameters")
    parameters = tuple(parse_parameter(name, body, f"{where}: {name}") for name, body in entries.items())
    start = tree.get("start", [])
    if not isinstance(start, list) or not all(isinstance(point, Mapping) for point in start):
        raise SpaceError(f"{where}: start: must be a list of points, got {start!r}")
    points = tuple({name: as_number(value) for name, value in point.items()} for point in start)
    description = str(tree.get("description", ""))
    fixed = _mapping(tree, "set", where)
    space = Space(str(tree["name"]), description, parameters, fixed, points, base, tree)
    check_conditions(space, where)
    for index, point in enumerate(points):
        check_start(space, point, f"{where}: start[{index}]")
    return space


def _mapping(tree: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = tree.get(key) or {}
    if not isinstance(value, Mapping):
        raise SpaceError(f"{where}: {key}: must hold keys and values, got {value!r}")
    return {str(name): content for name, content in value.items()}
