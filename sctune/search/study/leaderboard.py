"""The trials of a study in order of merit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from sctune.metrics.merit import full_runs, in_order
from sctune.metrics.objective import Objective
from sctune.report import GPU_MEMORY, GPU_RESERVED, GPU_UTILISATION
from sctune.search.study.record import TAKEN, reports_of


@dataclass(frozen=True)
class TrialRow:
    """One trial as people and programs see it. values: epoch -> objective; seconds: its own training time.

    gpus: its share of a GPU, where trials differ. gpu_memory_mb, gpu_reserved_mb: MiB, the most of any epoch that its
    tensors held and that its process took for them; gpu_utilisation: percent, mean of its epochs; all None without a
    GPU, the latter also where nobody tells.
    """

    number: int
    state: str
    params: dict[str, Any]
    values: dict[int, float]
    value: float | None
    seconds: float | None
    stop_reason: str | None
    failure: dict[str, str] | None
    gpus: float | None = None
    gpu_memory_mb: float | None = None
    gpu_reserved_mb: float | None = None
    gpu_utilisation: float | None = None

    @property
    def epoch_seconds(self) -> float | None:
        """Of an epoch of all its tasks, with scoring; None before the first."""
        return None if self.seconds is None else self.seconds / len(self.values)


def leaderboard(trials: Iterable[FrozenTrial], objective: Objective) -> list[TrialRow]:
    """The trials as `merit.in_order` puts them."""
    return in_order(map(_row, trials), objective)


def best_row(rows: Iterable[TrialRow], objective: Objective) -> TrialRow | None:
    """The best full run, the earlier one of equals; None when there is none."""
    return next(iter(full_runs(rows, objective)), None)


def _row(trial: FrozenTrial) -> TrialRow:
    attrs = trial.user_attrs
    metrics = [report["metrics"] for report in reports_of(trial).values()]
    spent = [one.get("seconds") for one in metrics]

    def told(name: str) -> list[float]:
        return [float(one[name]) for one in metrics if name in one]

    busy = told(GPU_UTILISATION)
    return TrialRow(
        number=trial.number,
        state=trial.state.name,
        params=attrs.get("params", trial.params),
        values=dict(sorted(trial.intermediate_values.items())),
        value=trial.value,
        seconds=sum(spent) if spent and None not in spent else None,
        stop_reason=attrs.get("stop_reason"),
        failure=attrs.get("failure"),
        gpus=attrs.get(TAKEN, {}).get("gpus"),
        gpu_memory_mb=max(told(GPU_MEMORY), default=None),
        gpu_reserved_mb=max(told(GPU_RESERVED), default=None),
        gpu_utilisation=sum(busy) / len(busy) if busy else None,
    )
