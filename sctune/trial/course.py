"""A trial's replicates one after another: the tasks of a seed, trained to their end before those of the next begin.

To the driver all of it is one curve. Replicate r of `epochs` epochs takes the epochs after (r - 1) * epochs; a method
that has fewer ends each of them at r * epochs all the same. What the curve shows is the mean over the replicates that
are through, so that it stands still within a later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from sctune.config import Task
from sctune.metrics.objective import find_objective
from sctune.report import MEAN_DECIMALS, EpochReport, merge_reports

_OWN = ("seconds",)
"""Metrics of an epoch that are of this epoch alone, not of what came before."""


class Course:
    """Where a trial stands. replicates: 1 for a trial that is trained on all its tasks at once.

    done: replicates that are through.
    """

    def __init__(self, tasks: Sequence[Task], replicates: int, epochs: int) -> None:
        """tasks: those of a seed together; epochs: of a replicate. ValueError where the seeds are not as many."""
        self._parts = [list(tasks)] if replicates == 1 else [list(part) for _, part in groupby(tasks, _seed)]
        if len(self._parts) != replicates:
            raise ValueError(f"tasks of {len(self._parts)} seeds are no {replicates} replicates")
        self._replicates, self._epochs = replicates, epochs
        self.done = 0
        self._before: EpochReport | None = None

    @property
    def tasks(self) -> list[Task]:
        """Of the replicate that is trained now; none where all are through."""
        return self._parts[self.done] if self.done < len(self._parts) else []

    @property
    def several(self) -> bool:
        return self._replicates > 1

    def ends(self, epoch: int) -> bool:
        """Whether a replicate ends after an epoch of the trial."""
        return self.several and epoch % self._epochs == 0

    def told(self, report: EpochReport) -> None:
        """The trial told this report, now or in an earlier attempt."""
        if self.ends(report.epoch):
            self.done, self._before = report.epoch // self._epochs, report

    def report(self, reports: Mapping[str, EpochReport]) -> EpochReport:
        """Of the trial, from those of the tasks that are trained now (task key -> report of the same epoch)."""
        own = merge_reports(reports)
        if not self.several:
            return own
        metric, before = own.metric, self._before
        mine = {f"{metric}/{key}": report.value for key, report in reports.items()}
        metrics = dict(own.metrics)
        earlier = {} if before is None else {name: before.metrics[name] for name in _of_tasks(before)}
        through = earlier | mine if own.last or before is None else earlier
        if before is not None and own.last:
            for name in metrics.keys() & before.metrics.keys() - set(_OWN):
                metrics[name] = (self.done * before.metrics[name] + metrics[name]) / (self.done + 1)
        metrics |= earlier | mine
        # folds may be more with one seed than with another: each replicate counts as much
        value = own.value if before is None else before.value
        if before is not None and own.last:
            value = (self.done * before.value + own.value) / (self.done + 1)
        metrics[metric] = round(value, MEAN_DECIMALS)
        metrics[f"{metric}_worst"] = find_objective(own.objective).worst(through.values())
        scores = dict(own.scores) if own.last or before is None else {}
        begun = self.done * self._epochs
        epoch = begun + (self._epochs if own.last else own.epoch)
        kept = {} if before is None else dict(before.scores)
        return EpochReport(epoch, self._replicates * self._epochs, metrics, kept | scores, own.objective)


def _seed(task: Task) -> int:
    return task.seed


def _of_tasks(report: EpochReport) -> list[str]:
    """Names of the objective's metric of each task."""
    return [name for name in report.metrics if name.startswith(f"{report.metric}/")]
