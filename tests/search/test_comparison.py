"""The comparison of record and MLflow as a pure function: equal data agree, any one change is named, and only that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sctune.report import OBJECTIVE
from sctune.search.reconcile.comparison import Expected, compare_runs, expected_run
from sctune.search.reconcile.differences import Agreement, Difference, StudyState, agreement_lines, settled
from sctune.search.reconcile.record_check import StoredTrial, compare_checkpoints, compare_record
from sctune.tracking.callback import PastTrial
from sctune.tracking.runs import RUN_STATUS
from sctune.tracking.stored import Point, StoredRun

DONE = StudyState(launches=1, reason="done")
RUNNING = StudyState(launches=1, reason=None, running=True)


@st.composite
def past_trials(draw: Any) -> list[PastTrial]:
    trials = []
    for number in range(draw(st.integers(1, 5))):
        values = draw(st.lists(st.floats(0, 1), min_size=1, max_size=4))
        reports = {
            epoch: {"metrics": {OBJECTIVE: value, "loss/a b": value / 3}, "time": 1000 * number + epoch}
            for epoch, value in enumerate(values, 1)
        }
        state = draw(st.sampled_from([None, "COMPLETE", "PRUNED", "FAIL"]))
        told = values[-1] if state in ("COMPLETE", "PRUNED") else None
        trials.append(PastTrial(number, {"optim.lr": 0.1 + number}, 1, 0, reports, state, 1, told))
    return trials


def stored_runs(expected: list[Expected]) -> list[StoredRun]:
    """MLflow as it is when everything has arrived and the launch was stopped."""
    runs = [StoredRun("parent", None, "study", None, 0, "FINISHED", {}, {"state": "FINISHED"}, {})]
    for one in expected:
        tags = {"state": one.state or "UNFINISHED"} | ({} if one.value is None else {"value": one.value})
        points = {
            name: [Point(epoch, value, time) for epoch, (value, time) in curve.items()]
            for name, curve in one.points.items()
        }
        status = RUN_STATUS[one.state] if one.state else "KILLED"
        runs.append(StoredRun(f"r{one.number}", one.number, "trial", "parent", 1, status, one.params, tags, points))
    return runs


def expect(trials: list[PastTrial]) -> list[Expected]:
    return [expected_run(trial, {**trial.params, "list": [1, 2], "long": "x" * 7000}) for trial in trials]


@settings(max_examples=60, deadline=None)
@given(past_trials())
def test_what_was_told_agrees_in_any_order_of_runs(trials: list[PastTrial]) -> None:
    expected = expect(trials)
    runs = stored_runs(expected)
    assert compare_runs(expected, runs, DONE) == []
    assert compare_runs(expected, runs[::-1], DONE) == []
    assert compare_runs(expected, runs, RUNNING) == []


Change = Callable[[StoredRun], list[StoredRun]]


def _points(run: StoredRun, change: Callable[[list[Point]], list[Point]]) -> list[StoredRun]:
    return [replace(run, points={**run.points, OBJECTIVE: change(list(run.points[OBJECTIVE]))})]


CHANGES: dict[str, tuple[Change, str, bool, bool]] = {
    # change, kind of the difference, may be on the way, the run must be made anew
    "no run": (lambda run: [], "run", True, False),
    "two runs": (lambda run: [run, replace(run, run_id="copy", start=9)], "extra run", False, True),
    "no parameter": (lambda run: [replace(run, params={})], "parameters", True, False),
    "other parameter": (lambda run: [replace(run, params={**run.params, "optim.lr": "7"})], "parameters", False, True),
    "no point": (lambda run: _points(run, lambda points: points[1:]), "points", True, False),
    "no metric": (lambda run: [replace(run, points={})], "points", True, False),
    "other value": (lambda run: _points(run, lambda p: [p[0]._replace(value=2.0), *p[1:]]), "points", False, True),
    "other time": (lambda run: _points(run, lambda p: [p[0]._replace(time=5), *p[1:]]), "points", False, True),
    "twice": (lambda run: _points(run, lambda p: [*p, p[0]._replace(time=77)]), "points", False, True),
    "unknown epoch": (lambda run: _points(run, lambda p: [*p, Point(9, 0.5, 1)]), "points", False, True),
    "parent": (lambda run: [replace(run, parent="other")], "parent", False, False),
}


@settings(max_examples=30, deadline=None)
@given(trials=past_trials(), data=st.data())
@pytest.mark.parametrize("name", CHANGES)
def test_one_change_is_one_difference_of_its_trial(name: str, trials: list[PastTrial], data: Any) -> None:
    change, kind, late, anew = CHANGES[name]
    expected = expect(trials)
    runs = stored_runs(expected)
    victim = data.draw(st.integers(0, len(trials) - 1))
    changed = [runs[0], *(made for run in runs[1:] for made in (change(run) if run.trial == victim else [run]))]
    (found,) = compare_runs(expected, changed, DONE)
    assert (found.trial, found.kind, found.late, bool(found.wrong)) == (victim, kind, late, anew)
    assert "\n" not in found.line
    if name == "two runs":
        assert found.wrong == ("copy",), "the older of equals stays"
    left, waiting = settled(compare_runs(expected, changed, RUNNING), running=True)
    assert (len(left), waiting) == (0, 1) if late else (1, 0)


@pytest.mark.parametrize(
    ("recorded", "told", "status", "late"),
    [
        ("COMPLETE", "RUNNING", "RUNNING", True),
        ("COMPLETE", "UNFINISHED", "KILLED", True),
        ("COMPLETE", "COMPLETE", "RUNNING", True),
        ("COMPLETE", "PRUNED", "KILLED", False),
        ("FAIL", "COMPLETE", "FINISHED", False),
        (None, "RUNNING", "RUNNING", False),
        (None, "COMPLETE", "FINISHED", False),
    ],
)
def test_states(recorded: str | None, told: str, status: str, late: bool) -> None:
    past = PastTrial(0, {}, 1, 0, {1: {"metrics": {OBJECTIVE: 0.5}, "time": 1}}, recorded, 1, None)
    expected = expect([past])
    parent, run = stored_runs(expected)
    (found,) = compare_runs(expected, [parent, replace(run, tags={"state": told}, status=status)], DONE)
    assert (found.kind, found.late, found.repair) == ("state", late, "sync")


def test_a_trial_that_runs_or_waits_under_a_driver_is_no_difference() -> None:
    expected = expect([PastTrial(0, {}, 1, 0, {}, None)])
    parent, run = stored_runs(expected)
    for state in ("RUNNING", "WAITING"):
        assert compare_runs(expected, [parent, replace(run, tags={"state": state}, status="RUNNING")], RUNNING) == []
    assert compare_runs(expected, [parent, replace(run, tags={"state": "PRUNED"}, status="KILLED")], RUNNING) != []


def test_runs_without_a_trial_and_studies_without_a_run() -> None:
    expected = expect([PastTrial(0, {}, 1, 0, {}, "FAIL", 1)])
    runs = stored_runs(expected)
    stray = replace(runs[1], run_id="stray", trial=5)
    unknown = replace(runs[1], run_id="unknown", trial=None)
    found = compare_runs(expected, [*runs, stray, unknown], DONE)
    assert [one.wrong for one in found] == [("stray",), ("unknown",)]
    no_parent = compare_runs(expected, runs[1:], DONE)
    assert [one.kind for one in no_parent] == ["parent", "parent"]
    assert compare_runs([], [], StudyState(0, None)) == []


@pytest.mark.parametrize(
    ("reason", "status", "agrees"),
    [
        ("done", "FINISHED", True),
        ("done", "KILLED", False),
        ("stopped", "KILLED", True),
        ("stopped", "RUNNING", False),
        ("failed", "FAILED", True),
        (None, "RUNNING", False),
        (None, "KILLED", True),
        (None, "FINISHED", True),
    ],
)
def test_the_run_of_the_study(reason: str | None, status: str, agrees: bool) -> None:
    parent = StoredRun("p", None, "study", None, 0, status, {}, {"state": status}, {})
    assert (compare_runs([], [parent], StudyState(1, reason)) == []) == agrees


def test_a_record_that_contradicts_itself() -> None:
    def trial(number: int, epochs: list[int], state: str | None, value: float | None) -> PastTrial:
        reports = {epoch: {"metrics": {OBJECTIVE: epoch / 10}, "time": epoch} for epoch in epochs}
        return PastTrial(number, {}, 1, 0, reports, state, 1, value)

    def texts(trials: list[PastTrial], study: StudyState = DONE, lost: int = 0) -> list[str]:
        objectives = {
            one.number: {epoch: epoch / 10 for epoch in sorted(one.reports)[: len(one.reports) - lost]}
            for one in trials
        }
        return [one.line for one in compare_record(trials, objectives, study)]

    assert texts([trial(0, [1, 2], "COMPLETE", 0.2), trial(1, [], "FAIL", None)]) == []
    assert texts([trial(1, [1], "COMPLETE", 0.1)]) == ["the record's numbers have gaps (0)"]
    assert texts([trial(0, [1, 3], "COMPLETE", 0.3)]) == ["trial 0: the record's curve lacks 1 epoch (2)"]
    assert texts([trial(0, [1, 2], "COMPLETE", 0.1)]) == ["trial 0: the record's value is not that of its last epoch"]
    assert texts([trial(0, [1, 2], "PRUNED", 0.2)], lost=1) == [
        "trial 0: the record's values are not those of its reports"
    ]
    assert texts([trial(0, [1, 2], None, None)], StudyState(1, None), lost=1) == [], "its last write was cut off"
    (line,) = texts([trial(0, [1], None, None)])
    assert line.startswith("trial 0: the record says RUNNING, though")
    assert texts([trial(0, [1], None, None)], StudyState(1, "stopped")) == []


def test_checkpoints() -> None:
    trials = [
        PastTrial(0, {}, 1, 0, {}, "COMPLETE", 1, 0.5),
        PastTrial(1, {}, 1, 0, {}, "COMPLETE", 1, 0.7),
        PastTrial(2, {}, 1, 0, {}, "COMPLETE", 1, 0.5),
        PastTrial(3, {}, 1, 0, {}, "PRUNED", 1, 0.9),
        PastTrial(4, {}, 1, 0, {}, None),
    ]
    right = [StoredTrial(0, (3,)), StoredTrial(1, (3,)), StoredTrial(4, (1, 2))]
    assert compare_checkpoints(trials, right, 2, limited=False) == []
    assert compare_checkpoints(trials, right[1:2], 2, limited=True) == []
    found = compare_checkpoints(trials, [StoredTrial(3, (1,)), StoredTrial(4, (), (".epoch-1",)), right[1]], 2, False)
    assert [(one.trial, one.repair) for one in found] == [(3, "sync"), (4, "sync"), (0, None)]


def test_the_outcome_in_words() -> None:
    assert agreement_lines("s", Agreement(3, 12)) == ["record and MLflow agree: 3 trials, 12 points"]
    found = (Difference(1, "run", "MLflow has no run of it"), Difference(None, "record", "x", repair=None))
    lines = agreement_lines("s", Agreement(3, 12, found, "process 7 on here", 2))
    assert lines == [
        "study s is being run by process 7 on here; 2 things may be on the way to MLflow",
        "trial 1: MLflow has no run of it; `sctune sync s`",
        "x",
    ]
