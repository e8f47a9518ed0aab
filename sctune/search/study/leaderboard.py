"""The trials of a study in order of merit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from sctune.metrics.merit import full_runs, in_order
from sctune.metrics.objective import Objective
from sctune.search.study.record import reports_of


@dataclass(frozen=True)
class TrialRow:
    """One trial as people and programs see it. values: epoch -> objective; seconds: its own training time."""

    number: int
    state: str
    params: dict[str, Any]
    values: dict[int, float]
    value: float | None
    seconds: float | None
    stop_reason: str | None
    failure: dict[str, str] | None


def leaderboard(trials: Iterable[FrozenTrial], objective: Objective) -> list[TrialRow]:
    """The trials as `merit.in_order` puts them."""
    return in_order(map(_row, trials), objective)


def best_row(rows: Iterable[TrialRow], objective: Objective) -> TrialRow | None:
    """The best full run, the earlier one of equals; None when there is none."""
    return next(iter(full_runs(rows, objective)), None)


def _row(trial: FrozenTrial) -> TrialRow:
    attrs = trial.user_attrs
    spent = [report["metrics"].get("seconds") for report in reports_of(trial).values()]
    return TrialRow(
        number=trial.number,
        state=trial.state.name,
        params=attrs.get("params", trial.params),
        values=dict(sorted(trial.intermediate_values.items())),
        value=trial.value,
        seconds=sum(spent) if spent and None not in spent else None,
        stop_reason=attrs.get("stop_reason"),
        failure=attrs.get("failure"),
    )
