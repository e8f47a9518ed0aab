"""The study's searcher: Ray asks it for trials, an Optuna study in memory proposes, the record keeps everything.

Ray's own Optuna searcher tells early-stopped trials COMPLETE and leaves others RUNNING; this one tells the truth,
repeats no configuration and first goes on with the trials that an earlier launch left unfinished.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from sctune.report import EPOCH, OBJECTIVE
from sctune.search.proposer import Proposer
from sctune.search.record import Record, reports_of
from sctune.search.sampler import make_sampler
from sctune.search.space import Space, Values
from sctune.search.study import StudyManifest

ENVIRONMENT_ERRORS = ("ClusterError", "WeightsError")
"""Kinds of failure that say nothing about the configuration."""


class Observer(Protocol):
    """Told about every event on the driver's thread; must only enqueue. time: ms since 1970."""

    def on_start(self, number: int, params: Values, attempt: int) -> None: ...
    def on_report(self, number: int, report: dict[str, Any], time: int) -> None: ...
    def on_end(self, number: int, state: str, value: float | None, info: dict[str, Any]) -> None: ...


class StudySearcher(Searcher):
    """Suggests {"number", "params", "attempt"} and turns results into COMPLETE, PRUNED or FAIL, told exactly once.

    params: dotted fields of the configuration, a variant spelt out; observers and the record get it as it was drawn.
    stopping: set when the launch is being stopped; unfinished trials then stay RUNNING in the record, so that the
    next launch goes on with them. exhausted: says so when no untried configuration is left. abort: why the launch
    must end, when a trial met trouble that is not its own (data, weights or versions of a node).
    """

    def __init__(
        self, manifest: StudyManifest, space: Space, record: Record, observers: Sequence[Observer] = ()
    ) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self.manifest = manifest
        self.space = space
        self.record = record
        self.observers = list(observers)
        self.stopping = False
        self.exhausted: str | None = None
        self.abort: str | None = None
        self.attempts: dict[int, int] = {}
        self._live: dict[str, int] = {}
        trials = record.load()
        self._unfinished = deque(trial.number for trial in trials if trial.state == TrialState.RUNNING)
        self._times = {t.number: {epoch: report["time"] for epoch, report in reports_of(t).items()} for t in trials}
        self._newest = max((time for times in self._times.values() for time in times.values()), default=0)
        self._latest: dict[int, tuple[int, float]] = {}
        for trial in trials:
            self.attempts[trial.number] = int(trial.user_attrs.get("attempt", 0))
        sampler = make_sampler(manifest.sampler, manifest.sampler_seed, space=space, n_before=len(trials))
        self.proposer = Proposer(
            space,
            sampler,
            manifest.sampler_seed,
            trials,
            record.load_study_attrs(),
            in_order=manifest.sampler == "grid",
        )

    @property
    def history(self) -> list[tuple[int, int, float]]:
        """(number, epoch, value) of all reports so far, in order of their first arrival; what a rule is refilled with.

        A repeated epoch has its latest value.
        """
        curves = {trial.number: trial.intermediate_values for trial in self.proposer.trials()}
        order = sorted((time, number, epoch) for number, times in self._times.items() for epoch, time in times.items())
        return [(number, epoch, curves[number][epoch]) for _, number, epoch in order if epoch in curves[number]]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial, or Searcher.FINISHED when the budget is spent, the space exhausted or a stop asked for."""
        if self.stopping:
            return str(Searcher.FINISHED)
        # the record is complete before the next ask depends on it; a failed write ends the search here
        self.record.flush()
        if self._unfinished:
            return self._start_again(trial_id, self._unfinished.popleft())
        n_trials = self.proposer.n_trials
        if n_trials >= self.manifest.trials:
            return str(Searcher.FINISHED)
        frozen = self.proposer.ask()
        if frozen is None:
            self.exhausted = f"space exhausted after {n_trials} of {self.manifest.trials}"
            return str(Searcher.FINISHED)
        return self._start_new(trial_id, frozen)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch of a trial that goes on. Ray does not pass the last one here, but to `on_trial_complete`."""
        number = self._live.get(trial_id)
        report = read_report(result)
        if number is not None and report is not None:
            self._take(number, report)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end of a trial, by itself, by the scheduler, by an error, or because the launch is being stopped."""
        number = self._live.pop(trial_id, None)
        if number is None:
            return
        result = result or {}
        report = read_report(result)
        # the last result may have been told before; an epoch repeated by a restarted worker has a value of its own
        if report is not None and self._latest.get(number) != (report[EPOCH], report[OBJECTIVE]):
            self._take(number, report)
        failure = read_failure(result)
        epoch = self._latest[number][0] if number in self._latest else None
        finished = report is not None and epoch is not None and epoch >= report["epochs"]
        if failure is not None and failure["kind"] in ENVIRONMENT_ERRORS:
            # every other trial would meet the same: they stay unfinished, and the launch ends
            self.stopping, self.abort = True, failure["message"]
            return
        if failure is None and not finished and self.stopping:
            return
        if failure is None and (error or epoch is None):
            failure = {"kind": "lost", "message": "its worker was lost, or ended without a result", "traceback": ""}
        self._tell(number, failure, finished, epoch)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Ray asks whether its settings are taken; metric and mode are the study's own."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a new launch opens the record."""

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles the searcher into its own snapshot, which is never read back
        live = {"record", "proposer", "observers", "manifest"}
        return {key: value for key, value in self.__dict__.items() if key not in live}

    def _start_again(self, trial_id: str, number: int) -> dict[str, Any]:
        params = self.proposer.params(number)
        self.attempts[number] += 1
        attrs = {"attempt": self.attempts[number], "launch": len(self.manifest.launches)}
        self.record.set_attrs(number, attrs)
        # no two attempts may have one number, whatever happens next: it keeps their checkpoints apart
        self.record.flush()
        return self._started(trial_id, number, params)

    def _start_new(self, trial_id: str, frozen: FrozenTrial) -> dict[str, Any]:
        params = self.space.decode(frozen.params)
        self.attempts[frozen.number] = 1
        frozen.user_attrs = {"params": params, "attempt": 1, "launch": len(self.manifest.launches)}
        self.record.set_study_attrs(self.proposer.changed_study_attrs())
        self.record.start(frozen)
        return self._started(trial_id, frozen.number, params)

    def _started(self, trial_id: str, number: int, params: Values) -> dict[str, Any]:
        self._live[trial_id] = number
        for observer in self.observers:
            observer.on_start(number, params, self.attempts[number])
        # the worker knows configuration fields only
        return {"number": number, "params": self.space.assignments(params), "attempt": self.attempts[number]}

    def _take(self, number: int, report: dict[str, Any]) -> None:
        """Record one epoch; a resumed trial may repeat one, which keeps the time of its first arrival."""
        epoch = report[EPOCH]
        times = self._times.setdefault(number, {})
        if epoch not in times:
            # no two reports of a study share a time, so that the record knows their order
            self._newest = times[epoch] = max(int(time.time() * 1000), self._newest + 1)
        moment = times[epoch]
        self._latest[number] = (epoch, report[OBJECTIVE])
        self.proposer.report(number, epoch, report[OBJECTIVE])
        self.record.report(number, report, moment)
        for observer in self.observers:
            observer.on_report(number, report, moment)

    def _tell(self, number: int, failure: dict[str, str] | None, finished: bool, epoch: int | None) -> None:
        value = None
        if failure is not None:
            state, reason = TrialState.FAIL, f"failed: {failure['kind']}"
        elif finished:
            state, reason = TrialState.COMPLETE, "all epochs done"
        else:
            state, reason = TrialState.PRUNED, f"stopped by {self.manifest.scheduler.name} at epoch {epoch}"
        if failure is None and epoch is not None:
            value = self.proposer.value(number, epoch)
        attrs: dict[str, Any] = {"stop_reason": reason}
        if failure is not None:
            attrs["failure"] = {"kind": failure["kind"], "message": failure["message"]}
        self.proposer.tell(number, state, value)
        self.record.finish(number, state, value, attrs)
        info = {"stop_reason": reason, "epoch": epoch, "failure": failure, "params": self.proposer.params(number)}
        for observer in self.observers:
            observer.on_end(number, state.name, value, info)


def read_report(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The EpochReport dictionary in a Ray result, nested or flattened with slashes; None when it holds none.

    A result with a failure may hold placeholders for the values that Ray insists on; it is no report.
    """
    if read_failure(result) is not None or EPOCH not in result or "epochs" not in result:
        return None
    epoch, epochs, value = int(result[EPOCH]), int(result["epochs"]), float(result[OBJECTIVE])
    parts = {"metrics": _part(result, "metrics"), "scores": _part(result, "scores")}
    return {EPOCH: epoch, "epochs": epochs, OBJECTIVE: value, **parts}


def read_failure(result: Mapping[str, Any]) -> dict[str, str] | None:
    """{"kind", "message", "traceback"} of a trial that classified its own error; None when it did not."""
    failure = _part(result, "failure")
    return {key: str(failure.get(key, "")) for key in ("kind", "message", "traceback")} if failure else None


def _part(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    nested = result.get(name)
    if isinstance(nested, Mapping):
        return dict(nested)
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in result.items() if key.startswith(prefix)}
