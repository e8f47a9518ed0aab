"""One searched parameter: what it may be, how Optuna draws it, how it is written down.

A parameter's value is what the configuration gets. Its internal form is what Optuna stores: the same, but for
ordered choices their index, so that a sampler sees the order.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from sctune.errors import SpaceError, nearest

KINDS = ("float", "int", "categorical", "ordinal")
MAX_PROBES = 64
"""Integer ranges with more values than this are probed at their ends only."""

LARGEST = 1e15
"""Bounds of a range may not lie further from zero: doubles hold no larger integers exactly."""

MAX_CHOICES = 1000

MAX_SHOWN = 8
"""Values of a stepped range that are listed for the user; of more the first two and the last."""

When = tuple[tuple[str, tuple[Any, ...]], ...]

# YAML 1.1 reads 5e-5 as text
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def as_number(value: Any) -> Any:
    """Text such as `5e-5` as the number that is meant; anything else unchanged."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


@dataclass(frozen=True)
class Range:
    """A float or an integer between `low` and `high`, both included, on a linear or a logarithmic scale."""

    name: str
    when: When
    integer: bool
    low: float
    high: float
    log: bool
    step: float | None
    needs: When = ()
    """Conditions that its field has without the space saying so (needs.py); those of `when` are the space's own."""

    @property
    def conditions(self) -> When:
        return (*self.when, *self.needs)

    @property
    def count(self) -> int | None:
        """Number of values; None when they are continuous."""
        if self.step is None:
            return None
        return int((self.high - self.low) / self.step + 1e-9) + 1

    @property
    def grid(self) -> bool:
        return False

    def distribution(self) -> BaseDistribution:
        if self.integer:
            return IntDistribution(int(self.low), int(self._at(-1)), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self._at(-1), log=self.log, step=self.step)

    def suggest(self, trial: Trial) -> Any:
        if self.integer:
            drawn: float = trial.suggest_int(
                self.name, int(self.low), int(self._at(-1)), step=int(self.step or 1), log=self.log
            )
        else:
            drawn = trial.suggest_float(self.name, self.low, self._at(-1), step=self.step, log=self.log)
        return self.decode(drawn)

    def values(self) -> Iterator[Any]:
        """All values in ascending order; only for a finite parameter."""
        for index in range(self.count or 0):
            yield self._at(index)

    def probes(self) -> list[Any]:
        """Values whose feasibility stands for that of all: the ends, and everything in between when few."""
        if self.integer and (self.count or 0) <= MAX_PROBES:
            return list(self.values())
        return [self.decode(self.low), self._at(-1)]

    def contains(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.integer else int | float):
            return False
        if not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < 1e-8

    def encode(self, value: Any) -> Any:
        return value

    def decode(self, stored: Any) -> Any:
        if self.step is None:
            return float(stored)
        return self._at(round((stored - self.low) / self.step))

    def key(self, value: Any) -> str:
        # 12 digits: 0.1 + 0.2 and 0.3 are the same point
        return f"{float(value):.12g}"

    def describe(self) -> str:
        text = f"{'an integer' if self.integer else 'a number'} in [{self.low:g}, {self.high:g}]"
        if self.step is None or (self.integer and self.step == 1):
            return text
        return f"{text} by steps of {self.step:g}: {self._tried()}"

    @property
    def note(self) -> str | None:
        """A line for the user where the step leaves nothing to search."""
        if self.count != 1 or self.low == self.high:
            return None
        return (
            f"{self.name}: a step of {self.step:g} leaves one value in [{self.low:g}, {self.high:g}], which is "
            f"{self.low:g}; give a smaller step, or the value under set:"
        )

    def _tried(self) -> str:
        """The values that are drawn, the middle of many left out; and that the end of the range is not one of them."""
        count, last = self.count or 0, self._at(-1)
        if count <= MAX_SHOWN:
            text = ", ".join(f"{value:g}" for value in self.values())
        else:
            text = f"{self._at(0):g}, {self._at(1):g}, ... {last:g} ({count} values)"
        return text if self.key(last) == self.key(self.high) else f"{text} ({self.high:g} is never tried)"

    def _at(self, index: int) -> Any:
        """Value number `index` of a stepped range (-1: the last), free of accumulated rounding."""
        if self.step is None:
            return float(self.high if index == -1 else self.low)
        index = (self.count or 1) - 1 if index == -1 else index
        value = Decimal(repr(self.low)) + index * Decimal(repr(self.step))
        return int(value) if self.integer else float(value)


@dataclass(frozen=True)
class Choice:
    """One of a few listed values; `ordered` ones are drawn by their index; `grid` marks the `values:` form."""

    name: str
    when: When
    choices: tuple[Any, ...]
    ordered: bool
    grid: bool
    needs: When = ()

    @property
    def conditions(self) -> When:
        return (*self.when, *self.needs)

    @property
    def count(self) -> int | None:
        return len(self.choices)

    def distribution(self) -> BaseDistribution:
        return IntDistribution(0, len(self.choices) - 1) if self.ordered else CategoricalDistribution(self.choices)

    def suggest(self, trial: Trial) -> Any:
        if self.ordered:
            return self.choices[trial.suggest_int(self.name, 0, len(self.choices) - 1)]
        return trial.suggest_categorical(self.name, self.choices)

    def values(self) -> Iterator[Any]:
        yield from self.choices

    def probes(self) -> list[Any]:
        return list(self.choices)

    def contains(self, value: Any) -> bool:
        return value in self.choices

    def encode(self, value: Any) -> Any:
        index = self.choices.index(value)
        return index if self.ordered else self.choices[index]

    def decode(self, stored: Any) -> Any:
        return self.choices[stored] if self.ordered else stored

    def key(self, value: Any) -> str:
        return str(self.choices.index(value))

    def describe(self) -> str:
        return f"one of {', '.join(map(str, self.choices))}"


Parameter = Range | Choice


def nearest_value(parameter: Parameter, value: Any) -> list[Any]:
    """A value as the parameter has it, or the nearest that it has, in a list; empty where nothing is near."""
    if parameter.contains(value):
        return [value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    if isinstance(parameter, Range):
        return [parameter.decode(min(max(value, parameter.low), parameter._at(-1)))]
    numbers = [one for one in parameter.choices if isinstance(one, int | float) and not isinstance(one, bool)]
    return [min(numbers, key=lambda one: abs(one - value))] if parameter.ordered and numbers else []


def parse_parameter(name: str, body: Any, where: str) -> Parameter:
    """One entry of `parameters:`. `where` starts the message of the SpaceError that a mistake raises."""
    if not isinstance(body, Mapping):
        raise SpaceError(f"{where}: write {{type: float, low: ..., high: ...}}, got {body!r}")
    kind = "values" if "values" in body and "type" not in body else body.get("type")
    if kind != "values" and kind not in KINDS:
        raise SpaceError(f"{where}: unknown type {kind!r}; {nearest(str(kind), KINDS)} (or values: [...] for a grid)")
    if kind in ("float", "int"):
        _check_keys(body, {"type", "low", "high", "log", "step", "when"}, where)
        return _parse_range(name, body, kind == "int", where)
    field = "values" if kind == "values" else "choices"
    _check_keys(body, {"when", "values"} if kind == "values" else {"type", "choices", "when"}, where)
    choices = _parse_choices(body.get(field), f"{where}.{field}")
    ordered = kind == "ordinal" or (kind == "values" and _ascending(choices))
    return Choice(name, parse_when(body, where), choices, ordered, kind == "values")


def parse_when(body: Mapping[str, Any], where: str) -> When:
    """`when: {name: value or [values]}` as pairs; all of them must hold."""
    when = body.get("when", {})
    if not isinstance(when, Mapping):
        raise SpaceError(f"{where}.when: write {{other.parameter: value}}, got {when!r}")
    pairs = []
    for other, allowed in when.items():
        values = allowed if isinstance(allowed, list) else [allowed]
        pairs.append((str(other), _parse_choices(values, f"{where}.when.{other}")))
    return tuple(pairs)


def _check_keys(body: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in body:
        if key not in known:
            raise SpaceError(f"{where}: unknown key {key!r}; {nearest(str(key), known)}")


def _parse_range(name: str, body: Mapping[str, Any], integer: bool, where: str) -> Range:
    low, high = (_number(body, key, integer, where) for key in ("low", "high"))
    step = _number(body, "step", integer, where) if "step" in body else None
    log = body.get("log", False)
    if not isinstance(log, bool):
        raise SpaceError(f"{where}.log: must be true or false, got {log!r}")
    if low > high:
        raise SpaceError(f"{where}: low {low:g} is above high {high:g}")
    if log and (low <= 0 or step is not None):
        raise SpaceError(f"{where}: log needs low above 0 and no step, got low {low:g} and step {step}")
    if step is not None and step <= 0:
        raise SpaceError(f"{where}.step: must be above 0, got {step:g}")
    if step is not None and high - low > step * LARGEST:
        raise SpaceError(f"{where}.step: {step:g} is too small for {low:g} to {high:g}; leave it out")
    return Range(name, parse_when(body, where), integer, low, high, log, 1 if integer and step is None else step)


def _number(body: Mapping[str, Any], key: str, integer: bool, where: str) -> Any:
    value = as_number(body.get(key))
    kind: Any = int if integer else int | float
    # an integer first: one of 400 digits is no float
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if isinstance(value, bool) or not isinstance(value, kind) or not finite:
        wanted = "an integer" if integer else "a finite number"
        raise SpaceError(f"{where}.{key}: must be {wanted}, got {body.get(key)!r}")
    if abs(value) > LARGEST:
        raise SpaceError(f"{where}.{key}: must lie in -{LARGEST:g} to {LARGEST:g}, got {str(value)[:30]}")
    return value if integer else float(value)


def _parse_choices(listed: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(listed, list) or not listed:
        raise SpaceError(f"{where}: must be a list of values, got {listed!r}")
    if len(listed) > MAX_CHOICES:
        raise SpaceError(f"{where}: {len(listed)} values, and at most {MAX_CHOICES} can be listed; use a range")
    values = tuple(as_number(value) for value in listed)
    for index, value in enumerate(values):
        if not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
            raise SpaceError(f"{where}: {value!r} is not a plain finite value")
        if value in values[:index]:
            raise SpaceError(f"{where}: {value!r} is listed twice")
    return values


def _ascending(values: tuple[Any, ...]) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and all(a < b for a, b in itertools.pairwise(values))
