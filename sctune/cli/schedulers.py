"""Lists of settings with commas, of which a command takes every combination."""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING

from sctune.errors import ConfigError

if TYPE_CHECKING:
    from sctune.search.study.manifest import SchedulerSpec


def whole_numbers(text: str, option: str) -> list[int]:
    """Of 2,3; raises ConfigError, which names the option."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigError(f"{option} {text!r}: give whole numbers with commas, for example 2,3")
    return [int(part) for part in text.split(",")]


def numbers(text: str, option: str) -> list[float]:
    """Of .8,.95; raises ConfigError, which names the option."""
    if not re.fullmatch(r"\d*\.?\d+(,\d*\.?\d+)*", text):
        raise ConfigError(f"{option} {text!r}: give numbers with commas, for example .8,.95")
    return [float(part) for part in text.split(",")]


def asked_schedulers(
    own: SchedulerSpec, names: str | None, factors: str | None, graces: str | None, chances: str | None
) -> list[SchedulerSpec]:
    """Every combination of what was asked for, with `own` for the rest; none where nothing was."""
    from sctune.search.rules.registry import NO_RULE
    from sctune.search.study.manifest import SchedulerSpec

    def confidences(name: str) -> list[float | None]:
        if chances is None:
            # its own goes with its own scheduler: others may not know it
            return [own.stop_confidence if name == own.name else None]
        return [*numbers(chances, "--stop-confidence")]

    def chosen(text: str | None, option: str, default: int | None) -> list[int | None]:
        return [default] if text is None else [*whole_numbers(text, option)]

    if names is factors is graces is chances is None:
        return []
    found = []
    for name in names.split(",") if names else [own.name]:
        for factor, grace, confidence in product(
            chosen(factors, "--factor", own.factor), chosen(graces, "--grace", own.grace), confidences(name)
        ):
            spec = SchedulerSpec(
                name=name,
                grace=grace,
                factor=own.factor if factor is None else factor,
                stop_confidence=confidence,
            )
            # what a rung is means nothing to one that stops nobody
            found.append(SchedulerSpec(name=NO_RULE) if name == NO_RULE else spec)
    return list(dict.fromkeys(found))
