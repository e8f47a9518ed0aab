"""The study's searcher: Ray asks it for trials, an Optuna study in memory proposes, the record keeps everything.

Ray's own Optuna searcher tells early-stopped trials COMPLETE and leaves others RUNNING; this one tells the truth,
repeats no configuration and first goes on with the trials that an earlier launch left unfinished. Ray itself
retries nothing: a trial that is started again is suggested again, with the next attempt number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from sctune.metrics.objective import DEFAULT, metric_of
from sctune.report import EPOCH
from sctune.search.cluster.resources import Share
from sctune.search.run.faults import FIRST_FAILURES, Faults, Verdict, WaitingTrials, common_cause
from sctune.search.space.definition import Space, Values
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.record import Record, reports_of
from sctune.search.suggest.samplers import make_sampler
from sctune.search.suggest.suggester import Proposer


class Observer(Protocol):
    """Told about every event on the driver's thread; must only enqueue. time: ms since 1970."""

    def on_start(self, number: int, params: Values, attempt: int) -> None: ...
    def on_report(self, number: int, report: dict[str, Any], time: int) -> None: ...
    def on_wait(self, number: int, reason: str) -> None: ...
    def on_end(self, number: int, state: str, value: float | None, info: dict[str, Any]) -> None: ...


class Gate(Protocol):
    """Whether starts are held back at present; stuck: why that will not end by itself."""

    stuck: str | None

    def __call__(self) -> bool: ...
    def doubt(self) -> None:
        """The storage took no checkpoint: hold starts back until it takes a file."""


class _Open:
    stuck: str | None = None

    def __call__(self) -> bool:
        return False

    def doubt(self) -> None:
        pass


OPEN = _Open()


class StudySearcher(Searcher):
    """Suggests {"number", "params", "attempt", "launch", "first_launch", "share", "avoid"}.

    Results become COMPLETE, PRUNED or FAIL, told exactly once.
    params: dotted fields of the configuration, a variant spelt out; observers and the record get it as it was drawn.
    share: {"cpus", "gpus"} that the trial takes; avoid: ids of nodes that it must not go to. stopping: set when the
    launch is being stopped; unfinished trials then stay RUNNING in the record, so that the next launch goes on with
    them. exhausted: says so when no untried configuration is left. abort: why the launch must end, when a trial met
    trouble that is not its own (data, weights or versions of a node) and there is no other node. hopeless: why the
    launch ended, when its first trials all failed. bug: what an observer raised.
    """

    def __init__(
        self,
        manifest: StudyManifest,
        space: Space,
        record: Record,
        observers: Sequence[Observer] = (),
        faults: Faults | None = None,
        gate: Gate = OPEN,
        on_left_out: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """faults: decides about trials in trouble (none: of one CPU each); gate: asked before each start.

        on_left_out: told in one line of a node that gets no trials any more.
        """
        self.objective = manifest.build_objective()
        super().__init__(metric=self.objective.metric, mode=self.objective.direction[:3])
        self.manifest = manifest
        self.space = space
        self.record = record
        self.observers = list(observers)
        self.stopping = False
        self.exhausted: str | None = None
        self.abort: str | None = None
        self.hopeless: str | None = None
        self.bug: Exception | None = None
        self.attempts: dict[int, int] = {}
        alone = Share(1.0, 0.0)
        self._faults = faults or Faults(alone, alone, lambda _node: True)
        self._gate = gate
        self._on_left_out = on_left_out
        self._live: dict[str, int] = {}
        self._errors: dict[str, str] = {}
        self._nodes: dict[int, str] = {}
        self._failures: list[Mapping[str, Any]] = []
        trials = record.load()
        self._waiting = WaitingTrials(trial.number for trial in trials if trial.state == TrialState.RUNNING)
        self._shares = {t.number: Share(**t.user_attrs["share"]) for t in trials if "share" in t.user_attrs}
        self._succeeded = any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        self._times = {t.number: {epoch: report["time"] for epoch, report in reports_of(t).items()} for t in trials}
        self._newest = max((time for times in self._times.values() for time in times.values()), default=0)
        self._latest: dict[int, int] = {}
        self._first_launch: dict[int, int] = {}
        for trial in trials:
            self.attempts[trial.number] = int(trial.user_attrs.get("attempt", 0))
            self._first_launch[trial.number] = int(trial.user_attrs.get("first_launch", 0))
        sampler = make_sampler(manifest.sampler, manifest.sampler_seed, space=space, n_before=len(trials))
        self.proposer = Proposer(
            space,
            sampler,
            manifest.sampler_seed,
            trials,
            record.load_study_attrs(),
            in_order=manifest.sampler == "grid",
            taken=record.foreign,
            objective=self.objective,
        )

    @property
    def history(self) -> list[tuple[int, int, float]]:
        """(number, epoch, value) of all reports so far, in order of arrival; what a rule is refilled with."""
        curves = {trial.number: trial.intermediate_values for trial in self.proposer.trials()}
        order = sorted((time, number, epoch) for number, times in self._times.items() for epoch, time in times.items())
        return [(number, epoch, curves[number][epoch]) for _, number, epoch in order if epoch in curves[number]]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, None for "not now", or Searcher.FINISHED when nothing is left to start or to wait for."""
        if self.stopping:
            return str(Searcher.FINISHED)
        if self._gate():
            if self._gate.stuck is not None and not self._live:
                self.stopping, self.abort = True, self._gate.stuck
            return None
        number = self._waiting.next_ready()
        if number is not None:
            return self._start_again(trial_id, number)
        frozen = self._ask()
        if frozen is not None:
            return self._start_new(trial_id, frozen)
        parked = self._waiting.next_parked()
        if parked is not None:
            return self._start_again(trial_id, parked)
        # a running trial may yet have to be started again
        return None if self._live or len(self._waiting) else str(Searcher.FINISHED)

    def _ask(self) -> FrozenTrial | None:
        n_trials = self.proposer.n_trials
        if n_trials >= self.manifest.trials or self.exhausted is not None:
            return None
        # a write that failed for good ends the search here; nothing waits for those on their way
        self.record.check()
        frozen = self.proposer.ask()
        if frozen is None:
            self.exhausted = f"space exhausted after {n_trials} of {self.manifest.trials}"
        return frozen

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An epoch of a trial that goes on. Ray does not pass the last one here, but to `on_trial_complete`."""
        number = self._live.get(trial_id)
        report = read_report(result)
        if number is not None and report is not None:
            self._nodes[number] = str(result.get("node", ""))
            self._take(number, report)

    def on_error(self, trial_id: str, text: str) -> None:
        """Ray's message about a trial's worker, told before `on_trial_complete`."""
        self._errors[trial_id] = text

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end of a trial, by itself, by the scheduler, by an error, or because the launch is being stopped."""
        number = self._live.pop(trial_id, None)
        if number is None:
            return
        result = result or {}
        report = read_report(result)
        if report is not None:
            self._take(number, report)
        failure = read_failure(result)
        epoch = self._latest.get(number)
        text = self._errors.pop(trial_id, "")
        if failure is None and not error and epoch is not None:
            finished = report is not None and epoch >= report["epochs"]
            if finished or not self.stopping:
                self._tell(number, None, finished, epoch)
            return
        if failure is None and self.stopping:
            return
        share = self._shares.get(number, self._faults.base)
        if failure is not None:
            self._settle(number, self._faults.told(number, failure, share))
        else:
            self._settle(number, self._faults.lost(number, text, self._nodes.get(number) or None, share))

    def _settle(self, number: int, verdict: Verdict) -> None:
        if verdict.failure is not None:
            self._tell(number, dict(verdict.failure), False, self._latest.get(number))
            return
        if verdict.abort is not None:
            self.stopping, self.abort = True, verdict.abort
            return
        if verdict.storage:
            self._gate.doubt()
        if verdict.left_out is not None:
            self._on_left_out(verdict.left_out)
        if verdict.share is not None:
            self._shares[number] = verdict.share
            self.record.set_attrs(number, {"share": {"cpus": verdict.share.cpus, "gpus": verdict.share.gpus}})
            self._waiting.park(number)
        else:
            self._waiting.delay(number, verdict.wait_s)
        self._notify(lambda observer: observer.on_wait(number, verdict.reason))

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Ray asks whether its settings are taken; metric and mode are the study's own."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a new launch opens the record."""

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles the searcher into its own snapshot, which is never read back
        live = {"record", "proposer", "observers", "manifest", "_faults", "_gate", "_on_left_out"}
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
        self._first_launch[frozen.number] = self._launch
        frozen.user_attrs = {"params": params, "attempt": 1, "launch": len(self.manifest.launches)}
        frozen.user_attrs["first_launch"] = self._launch
        self.record.set_study_attrs(self.proposer.changed_study_attrs())
        self.record.start(frozen)
        return self._started(trial_id, frozen.number, params)

    def _started(self, trial_id: str, number: int, params: Values) -> dict[str, Any]:
        self._live[trial_id] = number
        attempt = self.attempts[number]
        self._notify(lambda observer: observer.on_start(number, params, attempt))
        share = self._shares.get(number, self._faults.base)
        return {
            "number": number,
            # the worker knows configuration fields only
            "params": self.space.assignments(params),
            "attempt": self.attempts[number],
            "launch": self._launch,
            "first_launch": self._first_launch[number],
            "share": {"cpus": share.cpus, "gpus": share.gpus},
            "avoid": sorted(self._faults.left_out),
        }

    @property
    def _launch(self) -> int:
        """Number of this launch, from 1: no other driver of the study has it, one that was cut off included."""
        return len(self.manifest.launches) + 1

    def _take(self, number: int, report: dict[str, Any]) -> None:
        """Record one epoch; one that a resumed trial repeats stays as it was first told, here and in MLflow.

        MLflow only adds points: with the seconds or, on a GPU, the rounding of the second time it would hold two.
        """
        epoch = report[EPOCH]
        times = self._times.setdefault(number, {})
        self._latest[number] = epoch
        if epoch in times:
            return
        # no two reports of a study share a time, so that the record knows their order
        moment = self._newest = times[epoch] = max(int(time.time() * 1000), self._newest + 1)
        self.proposer.report(number, epoch, report[self.objective.metric])
        self.record.report(number, report, moment)
        self._notify(lambda observer: observer.on_report(number, report, moment))

    def _notify(self, tell: Callable[[Observer], None]) -> None:
        """Tell all observers. Ray would log what one raises and crawl on, so a bug in one ends the launch instead."""
        for observer in self.observers:
            try:
                tell(observer)
            except Exception as problem:
                self.stopping, self.bug = True, self.bug or problem

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
            self._failures.append(attrs["failure"])
        self.proposer.tell(number, state, value)
        self.record.finish(number, state, value, attrs)
        info = {"stop_reason": reason, "epoch": epoch, "failure": failure, "params": self.proposer.params(number)}
        self._notify(lambda observer: observer.on_end(number, state.name, value, info))
        self._succeeded |= failure is None
        if not self._succeeded:
            self._give_up()

    def _give_up(self) -> None:
        """End the launch when its first trials all failed; one that still trains well is waited for a while."""
        promising = any(number in self._latest for number in self._live.values())
        if len(self._failures) >= FIRST_FAILURES * (3 if promising else 1):
            self.stopping, self.hopeless = True, common_cause(self._failures)


def read_report(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The EpochReport dictionary in a Ray result, nested or flattened with slashes; None when it holds none.

    A result with a failure may hold placeholders for the values that Ray insists on; it is no report.
    """
    if EPOCH not in result or "epochs" not in result:
        return None
    found = _nested(result)
    if found["failure"]:
        return None
    objective = str(result.get("objective", DEFAULT))
    metric = metric_of(objective)
    epoch, epochs, value = int(result[EPOCH]), int(result["epochs"]), float(result[metric])
    parts = {"metrics": found["metrics"], "scores": found["scores"]}
    # what the worker logged meanwhile, and where it ran: for the trial's log file only
    parts |= {key: result[key] for key in ("log", "where") if key in result}
    return {EPOCH: epoch, "epochs": epochs, metric: value, "objective": objective, **parts}


def read_failure(result: Mapping[str, Any]) -> dict[str, str] | None:
    """{"kind", "message", "traceback"} of a trial that classified its own error; None when it did not.

    With "where" it ran, its "node" and the "log" of its last epoch, where the worker told them.
    """
    failure = _nested(result)["failure"]
    keys = ["kind", "message", "traceback", *(key for key in ("where", "node", "log") if key in failure)]
    return {key: str(failure.get(key, "")) for key in keys} if failure else None


def _nested(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of a result that are dictionaries, in one pass: this runs for every report."""
    parts: dict[str, dict[str, Any]] = {"metrics": {}, "scores": {}, "failure": {}}
    for key, value in result.items():
        name, slash, rest = key.partition("/")
        if name in parts:
            if slash:
                parts[name][rest] = value
            elif isinstance(value, Mapping):
                parts[name].update(value)
    return parts
