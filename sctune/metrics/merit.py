"""The order of merit of a study's trials: what `status`, tables, pictures and the kept checkpoints go by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar

from sctune.metrics.objective import Objective

STATES = ("COMPLETE", "PRUNED", "RUNNING", "WAITING", "FAIL")


class Ended(Protocol):
    """A trial with its state (of STATES) and its last value, None where it has none."""

    @property
    def number(self) -> int: ...
    @property
    def state(self) -> str | None: ...
    @property
    def value(self) -> float | None: ...


class Curve(Ended, Protocol):
    """values: epoch -> value."""

    @property
    def values(self) -> Mapping[int, float]: ...


AnyEnded = TypeVar("AnyEnded", bound=Ended)
AnyCurve = TypeVar("AnyCurve", bound=Curve)


def full_runs(trials: Iterable[AnyEnded], objective: Objective) -> list[AnyEnded]:
    """Those that ran to the end, best first, the earlier of equals."""
    full = [trial for trial in trials if trial.state == "COMPLETE" and trial.value is not None]
    return sorted(full, key=lambda trial: (-merit_of(trial, objective), trial.number))


def in_order(trials: Iterable[AnyCurve], objective: Objective) -> list[AnyCurve]:
    """Full runs first, best first; then stopped ones by epochs and value, running ones and failures."""

    def rank(trial: AnyCurve) -> tuple[float, ...]:
        epochs = max(trial.values, default=0) if trial.state != "COMPLETE" else 0
        place = STATES.index(trial.state) if trial.state in STATES else len(STATES)
        return (place, -epochs, -merit_of(trial, objective), trial.number)

    return sorted(trials, key=rank)


def merit_of(trial: Ended, objective: Objective) -> float:
    """Higher is better; below all values where there is none."""
    return -math.inf if trial.value is None else objective.merit(trial.value)
