"""The trials of a study in order of merit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

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


def leaderboard(trials: Iterable[FrozenTrial]) -> list[TrialRow]:
    """Full runs first, best first; then stopped ones by epochs and value, running ones and failures."""
    order = ["COMPLETE", "PRUNED", "RUNNING", "WAITING", "FAIL"]

    def rank(row: TrialRow) -> tuple[float, ...]:
        epochs = max(row.values, default=0) if row.state != "COMPLETE" else 0
        value = row.value if row.value is not None else -1.0
        return (order.index(row.state), -epochs, -value, row.number)

    return sorted((_row(trial) for trial in trials), key=rank)


def best_row(rows: Iterable[TrialRow]) -> TrialRow | None:
    """The full run with the highest value, the earlier one of equals; None when there is none."""
    full = [row for row in rows if row.state == "COMPLETE" and row.value is not None]
    return min(full, key=lambda row: (-(row.value or 0.0), row.number), default=None)


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
