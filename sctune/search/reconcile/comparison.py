"""Whether the runs of MLflow say what the record says. Plain data in, differences out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sctune.metrics.objective import AUROC
from sctune.search.reconcile.differences import UNFINISHED, Difference, StudyState, child_text, count_of, some_of
from sctune.tracking.callback import PastReference, PastTrial
from sctune.tracking.events import Child, as_key, as_texts, short_metric, shown_metrics, shown_param
from sctune.tracking.runs import RUN_STATUS
from sctune.tracking.stored import Point, StoredRun

OPEN_STATES = ("RUNNING", "WAITING", "UNFINISHED")
"""Tag `state` of a run whose trial has not ended."""


@dataclass(frozen=True)
class Expected:
    """What MLflow must hold of a trial, or of a reference, whose number is its name. state None: it has not ended.

    points: metric -> epoch -> (value, time). short: the objective's second name.
    """

    number: Child
    params: Mapping[str, str]
    points: Mapping[str, Mapping[int, tuple[float, int]]]
    state: str | None
    value: str | None
    short: str = short_metric(AUROC)

    @property
    def n_points(self) -> int:
        """Points that the record holds; the objective's second name is none of its own."""
        return sum(len(curve) for name, curve in self.points.items() if name != self.short)


def expected_run(past: PastTrial | PastReference, shown: Mapping[str, Any]) -> Expected:
    """The run that a recorded trial must have; shown: all parameters that the tracking logs of it."""
    points: dict[str, dict[int, tuple[float, int]]] = {}
    for epoch, report in past.reports.items():
        for name, number in shown_metrics(report["metrics"], past.objective).items():
            points.setdefault(as_key(name), {})[epoch] = (float(number), int(report["time"]))
    params = {name: shown_param(name, text) for name, text in as_texts(shown).items()}
    value = None if past.value is None else repr(float(past.value))
    return Expected(past.number, params, points, past.state, value, short_metric(past.objective))


RESCORED = "rescore"
"""Role of a run that shows how a checkpoint scores in other ways; it is no trial."""


def compare_runs(expected: Sequence[Expected], runs: Sequence[StoredRun], study: StudyState) -> list[Difference]:
    """Where the runs in MLflow differ from the record."""
    parents = [run for run in runs if run.role == "study"]
    by_trial: dict[Child, list[StoredRun]] = {}
    found: list[Difference] = []
    known = {one.number for one in expected}
    for run in runs:
        if run.role in ("study", RESCORED):
            continue
        if run.trial is not None and run.trial in known:
            by_trial.setdefault(run.trial, []).append(run)
        else:
            owner = "no trial" if run.trial is None else child_text(run.trial)
            text = f"run {run.run_id} belongs to {owner}, which the record does not hold"
            found.append(Difference(None, "extra run", text, wrong=(run.run_id,)))
    found += _compare_parent(parents, study, bool(expected))
    parent = parents[0].run_id if parents else None
    for one in expected:
        found += compare_trial(one, by_trial.get(one.number, []), parent, study.running)
    return found


def compare_trial(one: Expected, runs: Sequence[StoredRun], parent: str | None, running: bool) -> list[Difference]:
    """Differences of one trial; runs: those with its tag, oldest first; parent: the id of the study's run."""
    number = one.number
    if not runs:
        return [Difference(number, "run", "MLflow has no run of it", late=True)]
    # the best of several stays, the oldest of equals
    checked = [(_content(one, run), run) for run in runs]
    content, run = min(checked, key=lambda pair: (len(pair[0]), pair[1].start))
    found = list(content)
    if len(runs) > 1:
        others = tuple(other.run_id for other in runs if other is not run)
        found.append(Difference(number, "extra run", f"MLflow has {len(runs)} runs of it", wrong=others))
    found += _compare_state(one, run, running)
    if run.parent != parent:
        found.append(Difference(number, "parent", "its run is not nested in the study's run", late=parent is None))
    return found


def _content(one: Expected, run: StoredRun) -> list[Difference]:
    return [*_compare_params(one, run), *_compare_points(one, run)]


def _compare_params(one: Expected, run: StoredRun) -> list[Difference]:
    found = []
    missing = [name for name in one.params if name not in run.params]
    if missing:
        text = f"MLflow lacks {count_of(len(missing), 'parameter')} ({some_of(missing)})"
        found.append(Difference(one.number, "parameters", text, late=True))
    wrong = [name for name, text in one.params.items() if run.params.get(name, text) != text]
    if wrong:
        texts = [f"{name} is {run.params[name]!r}, recorded {one.params[name]!r}" for name in wrong]
        text = f"MLflow has other parameters ({some_of(texts)})"
        found.append(Difference(one.number, "parameters", text, wrong=(run.run_id,)))
    return found


def _compare_points(one: Expected, run: StoredRun) -> list[Difference]:
    missing: list[str] = []
    wrong: list[str] = []
    for metric in sorted({*one.points, *run.points}):
        curve, stored = one.points.get(metric, {}), run.points.get(metric, ())
        steps = [point.step for point in stored]
        missing += [f"{metric} at epoch {epoch}" for epoch in curve if epoch not in steps]
        wrong += _wrong_points(metric, curve, stored)
    found = []
    if missing:
        text = f"MLflow lacks {count_of(len(missing), 'point')} ({some_of(missing)})"
        found.append(Difference(one.number, "points", text, late=True))
    if wrong:
        text = f"MLflow has {count_of(len(wrong), 'other point')} ({some_of(wrong)})"
        found.append(Difference(one.number, "points", text, wrong=(run.run_id,)))
    return found


def _wrong_points(metric: str, curve: Mapping[int, tuple[float, int]], stored: Sequence[Point]) -> list[str]:
    by_step: dict[int, list[Point]] = {}
    for point in stored:
        by_step.setdefault(point.step, []).append(point)
    found = []
    for step, points in sorted(by_step.items()):
        place = f"{metric} at epoch {step}"
        first = points[0]
        if step not in curve:
            found.append(f"{place}, which the record does not hold")
        elif len(points) > 1:
            found.append(f"{place} {len(points)} times")
        elif first.value != curve[step][0]:
            found.append(f"{place} is {first.value!r}, recorded {curve[step][0]!r}")
        elif first.time != curve[step][1]:
            found.append(f"{place} has another time")
    return found


def _compare_state(one: Expected, run: StoredRun, running: bool) -> list[Difference]:
    told = run.tags.get("state")
    state = one.state or "UNFINISHED"
    status = RUN_STATUS[one.state] if one.state is not None else "KILLED"
    if one.state is None and running and (told is None or told in OPEN_STATES):
        return []
    if (told, run.status) != (state, status):
        late = one.state is not None and (told is None or told in OPEN_STATES or told == state)
        text = f"MLflow says {told} (run {run.status}), the record {one.state or 'that it has not ended'}"
        return [Difference(one.number, "state", text, late=late)]
    if one.state is not None and run.tags.get("value") != one.value and one.value is not None:
        text = f"MLflow says value {run.tags.get('value')}, the record {one.value}"
        return [Difference(one.number, "state", text)]
    return []


def _compare_parent(parents: Sequence[StoredRun], study: StudyState, any_trial: bool) -> list[Difference]:
    if not parents:
        needed = study.launches > 0 or any_trial
        return [Difference(None, "parent", "MLflow has no run of the study", late=True)] if needed else []
    found = []
    if len(parents) > 1:
        others = tuple(run.run_id for run in parents[1:])
        found.append(Difference(None, "extra run", f"MLflow has {len(parents)} runs of the study", wrong=others))
    wanted = study_status(study)
    first = parents[0]
    if not study.running and (first.status not in wanted or first.tags.get("state") != first.status):
        text = f"MLflow says {first.tags.get('state')} of the study (run {first.status}), not {' or '.join(wanted)}"
        found.append(Difference(None, "parent", text))
    if not study.running and first.tags.get("notes", "") != study.notes:
        found.append(Difference(None, "parent", "MLflow has other notes on the study"))
    return found


def study_status(study: StudyState) -> tuple[str, ...]:
    """What the run of a study that no driver has may say; the first is what `sync` makes of it."""
    if study.reason == "stopped":
        return ("KILLED",)
    if study.reason in ("done", UNFINISHED):
        return ("FAILED",) if study.all_failed else ("FINISHED",)
    if study.reason == "failed":
        return ("FAILED",)
    # killed: it may have told its end before, which a repair leaves alone
    return ("KILLED", "FAILED", "FINISHED")
