"""What a worker tells the driver: an EpochReport for each epoch, or the TrialFailure that ended a trial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sctune.errors import NonFiniteError
from sctune.metrics.objective import DEFAULT, find_objective, metric_of

OBJECTIVE = metric_of(DEFAULT)
"""The metric of the default objective."""

MEAN_DECIMALS = 10
"""Of the mean over tasks: one pair of images that changes places makes more than that."""

EPOCH = "epoch"
"""Name of the time axis: epochs finished, counted by the trainer from 1."""

GPU_MEMORY, GPU_RESERVED = "gpu_memory_mb", "gpu_reserved_mb"
"""Metrics, in MiB: the most that tensors of a trial's process held on its GPU, and the most that it took for them."""

GPU_UTILISATION = "gpu_utilisation"
"""Metric, in percent: how much of an epoch its GPU computed, for whichever process; not there where nobody tells."""

VALUE, REPORT, FAILURE = "value", "report", "failure"
"""Keys of what a trial's step gives to Ray: the number that Ray insists on, and the EpochReport or the TrialFailure."""


@dataclass(frozen=True)
class Origin:
    """Where something was told. where: host, process and device, for people; node: Ray's id of the node, "" if unknown.

    log: what the worker logged since it last told something, line by line. kept: the epoch that the trial would go on
    from, were it started again now; 0: it would begin anew.
    """

    where: str = ""
    node: str = ""
    log: tuple[str, ...] = ()
    kept: int = 0


NOWHERE = Origin()


@dataclass(frozen=True)
class TrialFailure:
    """The error that ended a trial in its worker. kind: name of the error or of its class; message: one line."""

    kind: str
    message: str
    traceback: str = ""
    origin: Origin = NOWHERE


@dataclass(frozen=True)
class EpochReport:
    """What one epoch gave.

    epoch: epochs finished, 1 .. epochs; epochs: the full budget.
    metrics: name -> finite number; holds that of the objective; names of one task carry its key after a slash.
    scores: task key -> anomaly score per selection image, in the order of that task's split.
    objective: name of what the study is searched by.
    origin: of this telling, not of the epoch: neither compared nor stored (`to_dict`).
    """

    epoch: int
    epochs: int
    metrics: Mapping[str, float]
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    objective: str = DEFAULT
    origin: Origin = field(default=NOWHERE, compare=False)

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise NonFiniteError(f"{name} is {value} after epoch {self.epoch}; it must be a finite number")
        if self.metric not in self.metrics:
            raise ValueError(f"a report needs {self.metric!r}, got {sorted(self.metrics)}")

    @property
    def metric(self) -> str:
        """Name of the objective's metric."""
        return metric_of(self.objective)

    @property
    def value(self) -> float:
        """The objective after this epoch, in its own units and direction."""
        return self.metrics[self.metric]

    @property
    def last(self) -> bool:
        return self.epoch >= self.epochs

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for JSON; `from_dict` reads it back."""
        return {
            EPOCH: self.epoch,
            "epochs": self.epochs,
            self.metric: self.value,
            "objective": self.objective,
            "metrics": dict(self.metrics),
            "scores": {key: list(values) for key, values in self.scores.items()},
        }

    @staticmethod
    def from_dict(row: Mapping[str, Any]) -> EpochReport:
        """Raises ValueError for anything but what `to_dict` gives, NonFiniteError for a metric that is not finite.

        A dictionary that names no objective was written when there was one only.
        """
        whole = type(row.get(EPOCH)) is int and type(row.get("epochs")) is int
        metrics, scores, objective = row.get("metrics"), row.get("scores"), row.get("objective", DEFAULT)
        named = whole and isinstance(objective, str)
        if not (named and isinstance(metrics, Mapping) and isinstance(scores, Mapping)):
            raise ValueError(f"no report of an epoch: {sorted(map(str, row))}")
        lists = all(isinstance(values, list) and _numbers(values) for values in scores.values())
        if not (lists and _numbers(metrics.values())):
            raise ValueError("a report of an epoch with something else than numbers")
        return EpochReport(row[EPOCH], row["epochs"], metrics, scores, objective)


def _numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def merge_reports(reports: Mapping[str, EpochReport]) -> EpochReport:
    """One report of a trial from those of its tasks (task key -> report of the same epoch).

    Every metric is the mean over the tasks; seconds and selection images add up, and the memory of the process, which
    trains them all, is the most of any. With several tasks each
    objective is also given under its task's key, and the worst of them as `<metric>_worst`.
    """
    first = next(iter(reports.values()))
    metric, objective = first.metric, find_objective(first.objective)
    names = set.intersection(*(set(report.metrics) for report in reports.values()))
    metrics = {name: math.fsum(r.metrics[name] for r in reports.values()) / len(reports) for name in sorted(names)}
    metrics["seconds"] = math.fsum(report.metrics.get("seconds", 0.0) for report in reports.values())
    for name in names & {GPU_MEMORY, GPU_RESERVED}:
        metrics[name] = max(report.metrics[name] for report in reports.values())
    if len(reports) > 1:
        metrics[f"{metric}_worst"] = objective.worst(report.value for report in reports.values())
        metrics.update({f"{metric}/{key}": report.value for key, report in reports.items()})
    if len(reports) > 1:
        # means of values that are equal on paper are equal here too: ranking does not hang on how a sum was rounded
        metrics[metric] = round(metrics[metric], MEAN_DECIMALS)
    scores = {key: values for report in reports.values() for key, values in report.scores.items()}
    return EpochReport(first.epoch, first.epochs, metrics, scores, first.objective)
