"""What happens to trials, written down: in the sampler's study in memory, in the record, and told to observers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from sctune.report import EpochReport, TrialFailure
from sctune.search.cluster.resources import TrialResources
from sctune.search.space.definition import Values
from sctune.search.study.record import PAUSED, PROMOTED, PROPOSAL, TAKEN, reports_of
from sctune.search.study.unrecorded import RecordLike
from sctune.search.suggest.prior_sampler import Proposal
from sctune.search.suggest.suggester import Suggester

RESOURCES = "share"
"""User attribute {"cpus", "gpus"} of a trial that needed more than it was planned with; the name is the format's."""


class Observer(Protocol):
    """Told about every event on the driver's thread; must only enqueue. time: ms since 1970.

    on_wait: the trial has no worker until it is started again; reason: why, for people. info of on_end: "stop_reason",
    "epoch" (the last one), "params" and "failure" ({"kind", "message", "traceback", "where", "log"} or None).
    """

    def on_start(self, number: int, params: Values, attempt: int) -> None: ...
    def on_report(self, number: int, report: EpochReport, time: int) -> None: ...
    def on_wait(self, number: int, reason: str) -> None: ...
    def on_end(self, number: int, state: str, value: float | None, info: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended: COMPLETE, PRUNED or FAIL, why, and after which epoch (None: before the first)."""

    state: TrialState
    reason: str
    epoch: int | None
    failure: TrialFailure | None = None


class TrialRecorder:
    """Passes on what happens to the trials of one launch, to all three in the same order.

    on_bug: told what an observer raised; Ray would log it and crawl on.
    """

    def __init__(
        self,
        record: RecordLike,
        suggester: Suggester,
        trials: Sequence[FrozenTrial],
        launch: int,
        observers: Sequence[Observer],
        on_bug: Callable[[Exception], None],
    ) -> None:
        """trials: of earlier launches, as the record holds them; launch: number of this one, from 1."""
        self.record = record
        self._suggester = suggester
        self._launch = launch
        self._observers = list(observers)
        self._on_bug = on_bug
        self._times = {t.number: {epoch: report["time"] for epoch, report in reports_of(t).items()} for t in trials}
        self._newest = max((time for times in self._times.values() for time in times.values()), default=0)

    @property
    def history(self) -> list[tuple[int, int, float]]:
        """(number, epoch, value) of all reports so far, in order of arrival; what a rule is refilled with."""
        curves = {trial.number: trial.intermediate_values for trial in self._suggester.trials()}
        order = sorted((time, number, epoch) for number, times in self._times.items() for epoch, time in times.items())
        return [(number, epoch, curves[number][epoch]) for _, number, epoch in order if epoch in curves[number]]

    def start(
        self,
        frozen: FrozenTrial,
        params: Values,
        proposal: Proposal | None = None,
        taken: TrialResources | None = None,
    ) -> None:
        """A new trial. proposal: who proposed it, of a study with priors. taken: what it gets, where trials differ."""
        # older programs count launches from 0 in "launch"
        attrs: dict[str, Any] = {
            "params": params,
            "attempt": 1,
            "launch": self._launch - 1,
            "first_launch": self._launch,
        }
        attrs |= {} if proposal is None else {PROPOSAL: proposal.model_dump()}
        attrs |= {} if taken is None else {TAKEN: {"cpus": taken.cpus, "gpus": taken.gpus}}
        frozen.user_attrs = attrs
        self.record.set_study_attrs(self._suggester.changed_study_attrs())
        self.record.start(frozen)
        self._tell(lambda observer: observer.on_start(frozen.number, params, 1))

    def start_again(self, number: int, attempt: int, promoted: int | None, taken: TrialResources | None = None) -> None:
        """promoted: the last epoch after which it was paused and promoted; None: it never was. taken: as in `start`."""
        attrs: dict[str, Any] = {"attempt": attempt, "launch": self._launch - 1}
        attrs |= {} if taken is None else {TAKEN: {"cpus": taken.cpus, "gpus": taken.gpus}}
        self.record.set_attrs(number, attrs if promoted is None else {**attrs, PROMOTED: promoted})
        # no two attempts may have one number, whatever happens next: it keeps their checkpoints apart
        self.record.flush()
        params = self._suggester.params(number)
        self._tell(lambda observer: observer.on_start(number, params, attempt))

    def report(self, number: int, report: EpochReport) -> None:
        """One epoch; one that a resumed trial repeats stays as it was first told, here and in MLflow.

        MLflow only adds points: with the seconds or, on a GPU, the rounding of the second time it would hold two.
        """
        times = self._times.setdefault(number, {})
        if report.epoch in times:
            return
        # no two reports of a study share a time, so that the record knows their order
        moment = self._newest = times[report.epoch] = max(int(time.time() * 1000), self._newest + 1)
        self._suggester.report(number, report.epoch, report.value)
        self.record.report(number, report, moment)
        self._tell(lambda observer: observer.on_report(number, report, moment))

    def wait(self, number: int, reason: str, resources: TrialResources | None = None) -> None:
        """A trial is to be started again; resources: with more than it had."""
        if resources is not None:
            self.record.set_attrs(number, {RESOURCES: {"cpus": resources.cpus, "gpus": resources.gpus}})
        self._tell(lambda observer: observer.on_wait(number, reason))

    def pause(self, number: int, epoch: int, reason: str) -> None:
        self.record.set_attrs(number, {PAUSED: epoch})
        self._tell(lambda observer: observer.on_wait(number, reason))

    def end(self, number: int, end: TrialEnd, more: Mapping[str, Any]) -> None:
        """A trial is over; the value is that of its last epoch. more: attributes that the record keeps of it."""
        failure, value = end.failure, None
        if failure is None and end.epoch is not None:
            value = self._suggester.value(number, end.epoch)
        attrs: dict[str, Any] = {**more, "stop_reason": end.reason}
        if failure is not None:
            attrs["failure"] = {"kind": failure.kind, "message": failure.message}
        self._suggester.tell(number, end.state, value)
        self.record.finish(number, end.state, value, attrs)
        info: dict[str, Any] = {"stop_reason": end.reason, "epoch": end.epoch, "params": self._suggester.params(number)}
        info["failure"] = None if failure is None else _told(failure)
        self._tell(lambda observer: observer.on_end(number, end.state.name, value, info))

    def _tell(self, tell: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                tell(observer)
            except Exception as problem:
                self._on_bug(problem)


def _told(failure: TrialFailure) -> Mapping[str, str]:
    told = {"kind": failure.kind, "message": failure.message, "traceback": failure.traceback}
    return told | {"where": failure.origin.where, "log": "\n".join(failure.origin.log)}
