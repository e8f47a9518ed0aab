"""The observer that shows a study in MLflow; the searcher calls it, it only makes events."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from sctune.metrics.objective import AUROC, Objective
from sctune.report import EpochReport
from sctune.text import without_sections
from sctune.tracking.events import SHORT_PARAM, Child, Event, file_digest


class EventSink(Protocol):
    """What the callback needs of a Writer."""

    def put(self, event: Event) -> None: ...


@dataclass(frozen=True)
class StudyFacts:
    """What is the same for every trial of a study, known before the first one.

    study_id: of the manifest, never reused. base: the flat configuration that trials vary. tasks: their keys.
    versions: package -> version. tags: anything else to show on the parent run (selection mode, sampler, ...).
    resumed: this is not the study's first launch. objective: what it is searched by. references: name -> the flat
    configuration of a method that is run beside the trials. owner: MLflow's user of all runs; None: whoever runs this.
    """

    study_id: str
    name: str
    base: Mapping[str, Any]
    data_digest: str
    git_commit: str | None
    versions: Mapping[str, str]
    seed: int
    tasks: Sequence[str]
    tags: Mapping[str, str] = field(default_factory=dict)
    resumed: bool = False
    objective: Objective = AUROC
    references: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    owner: str | None = None


Number = TypeVar("Number", int, str)


@dataclass(frozen=True)
class Past(Generic[Number]):
    """A trial, or a reference, as the record has it, to be shown again; times in ms since 1970.

    number: of the trial; of a reference its name.
    reports: epoch -> {"metrics", "time"}. state: COMPLETE, PRUNED or FAIL with `ended`; None while it is unfinished.
    objective: what its study is searched by.
    failure: kind, message and traceback of one that failed, as far as they are known.
    """

    number: Number
    params: Mapping[str, Any]
    attempt: int
    started: int
    reports: Mapping[int, Mapping[str, Any]]
    state: str | None = None
    ended: int | None = None
    value: float | None = None
    stop_reason: str | None = None
    objective: Objective = AUROC
    failure: str | None = None


PastTrial: TypeAlias = Past[int]
PastReference: TypeAlias = Past[str]


class TrackingCallback:
    """Turns what happens to trials into events for a Writer; every method returns at once.

    calls, total_seconds, max_seconds: how often it was called on the driver's thread and what that cost.
    """

    def __init__(
        self,
        sink: EventSink,
        facts: StudyFacts,
        assignments: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    ) -> None:
        """assignments: a trial's parameters -> the configuration fields that they set; the same but for variants."""
        self.calls = 0
        self.total_seconds = 0.0
        self.max_seconds = 0.0
        self._sink = sink
        self._facts = facts
        self._assignments = assignments
        self._common = _common_tags(facts)

    def on_study_start(self) -> None:
        """The parent run: base configuration and facts."""
        facts = self._facts
        tags = {**facts.tags, **self._common, "state": "RUNNING", "objective": facts.objective.metric}
        with self._timed():
            content = {"name": facts.name, "params": dict(facts.base), "tags": tags, "resumed": facts.resumed}
            self._put("study", None, _now_ms(), content)

    def on_start(self, number: int, params: Mapping[str, Any], attempt: int) -> None:
        """Trial `number` starts; params: name -> sampled value, dotted or `variant`; attempt: 1 for the first time."""
        tags = {**self._common, "state": "RUNNING", "attempt": str(attempt)}
        with self._timed():
            content = {"params": self.shown_params(params), "tags": tags, "resumed": attempt > 1}
            self._put("trial_start", number, _now_ms(), content)

    def shown_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters of a trial's run: short names of what was sampled, then the whole configuration."""
        return {**short_names(params), **self._facts.base, **self._assignments(params), **params}

    def params_of(self, past: PastTrial | PastReference) -> dict[str, Any]:
        """All parameters of the run of a trial or a reference as the record has it."""
        if isinstance(past.number, str):
            return dict(self._facts.references.get(past.number, {}))
        return self.shown_params(past.params)

    def on_report(self, number: int, report: EpochReport, timestamp_ms: int) -> None:
        """An epoch's report; timestamp_ms: when this epoch was first reported."""
        with self._timed():
            self._put("report", number, timestamp_ms, {"step": report.epoch, "metrics": dict(report.metrics)})

    def on_end(self, number: int, state: str, value: float | None, info: Mapping[str, Any]) -> None:
        """Trial `number` is COMPLETE, PRUNED or FAIL; info: stop_reason; failure {kind, message, traceback}."""
        failure = info.get("failure")
        error = f"{failure['kind']}: {failure['message']}\n\n{failure['traceback']}" if failure else None
        with self._timed():
            content = {"status": state, "tags": _end_tags(state, value, info.get("stop_reason")), "error": error}
            self._put("trial_end", number, _now_ms(), content)

    def on_wait(self, number: int, reason: str) -> None:
        """Trial `number` waits to be started again (worker lost, memory too small); reason: why, for people."""
        with self._timed():
            self._put("tags", number, _now_ms(), {"tags": {"state": "WAITING", "wait_reason": reason}})

    def replay(self, past: PastTrial | PastReference) -> None:
        """Tell again what the record holds of a trial; what has arrived already changes nothing."""
        tags = {**self._common, "state": "RUNNING", "attempt": str(past.attempt)}
        # an unfinished one is opened: it goes on in this launch, or the study's end closes it
        content = {"params": self.params_of(past), "tags": tags, "resumed": past.state is None}
        self._put("trial_start", past.number, past.started, content)
        for epoch, report in past.reports.items():
            self._put("report", past.number, report["time"], {"step": epoch, "metrics": dict(report["metrics"])})
        if past.state is not None:
            tags = _end_tags(past.state, past.value, past.stop_reason)
            ended = past.started if past.ended is None else past.ended
            self._put("trial_end", past.number, ended, {"status": past.state, "tags": tags, "error": past.failure})

    def drop_run(self, number: Child | None, run_id: str) -> None:
        """Delete a run that is one too many."""
        self._put("drop", number, _now_ms(), {"run": run_id})

    def replace_run(self, number: Child, started: int, run_id: str) -> None:
        """Make a trial's run anew, with the files of the one that is wrong; `replay` then fills it."""
        self._put("replace", number, started, {"run": run_id})

    def on_artifact(
        self, number: Child | None, path: Path, artifact_path: str | None = None, proof: Path | None = None
    ) -> None:
        """Show a file or folder at a trial's run (None: the study's); it must stay where it is until delivered.

        proof: a small file; where it has changed by then, the folder belongs to another trial and is not shown here.
        """
        content: Event = {"path": str(path), "artifact_path": artifact_path}
        with self._timed():
            if proof is not None:
                content["proof"] = {"path": str(proof), "sha256": file_digest(proof)}
            self._put("artifact", number, _now_ms(), content)

    def on_tags(self, number: Child | None, tags: Mapping[str, str]) -> None:
        """Add tags to a trial's run (None: the study's)."""
        with self._timed():
            self._put("tags", number, _now_ms(), {"tags": dict(tags)})

    def on_study_end(
        self,
        status: str,
        tags: Mapping[str, str],
        points: Sequence[tuple[int, float, int]] = (),
        figures: Sequence[tuple[str, float, int]] = (),
    ) -> None:
        """The launch is over; status FINISHED, KILLED (stopped, can be resumed) or FAILED.

        For the study's own run: points: (step, best value so far, time in ms) of its chart; figures: (metric, value,
        time in ms).
        """
        content = {"status": status, "tags": {"state": status, **tags}, "points": [list(point) for point in points]}
        content["figures"] = [list(one) for one in figures]
        with self._timed():
            self._put("study_end", None, _now_ms(), content)

    def _put(self, kind: str, number: Child | None, time_ms: int, content: Event) -> None:
        facts = self._facts
        head = {"kind": kind, "study": facts.study_id, **facts.objective.stated}
        self._sink.put({**head, "trial": number, "time": time_ms, **content})

    def on_study_found(self, started: int, running: bool) -> None:
        """The parent run, made again where it is missing; started: ms since 1970. running: a launch runs it now."""
        facts = self._facts
        tags = {**facts.tags, **self._common, **({"state": "RUNNING"} if running else {})}
        content = {"name": facts.name, "params": dict(facts.base), "tags": tags}
        self._put("study", None, started, {**content, "resumed": running})

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self.calls += 1
            self.total_seconds += seconds
            self.max_seconds = max(self.max_seconds, seconds)


def short_names(params: Mapping[str, Any]) -> dict[str, Any]:
    """The varied parameters by their last name part, which reads better in tables; clashes keep the dotted name.

    They begin with `_`, so that MLflow, which sorts by name, shows them before the fifty that nobody varied.
    """
    names = without_sections(params)
    return {f"{SHORT_PARAM}{names[name]}": value for name, value in params.items()}


def _end_tags(state: str, value: float | None, stop_reason: object) -> dict[str, str]:
    tags = {"state": state, "stop_reason": str(stop_reason or state.lower())}
    return tags if value is None else {**tags, "value": repr(float(value))}


def _common_tags(facts: StudyFacts) -> dict[str, str]:
    tags = {
        "study": facts.name,
        "data_digest": facts.data_digest,
        "seed": str(facts.seed),
        "tasks": json.dumps(list(facts.tasks)),
        **{f"version.{package}": version for package, version in facts.versions.items()},
    }
    if facts.git_commit:
        tags["mlflow.source.git.commit"] = facts.git_commit
    if facts.owner:
        tags["mlflow.user"] = facts.owner
    return tags


def _now_ms() -> int:
    return int(time.time() * 1000)
