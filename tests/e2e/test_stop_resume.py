"""Searches that are stopped, killed and continued: no trial is lost, none is there twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

EPOCHS = 4
# trials of some seconds each, so that a stop always meets running ones
LONG = ["--sampler", "random", "--scheduler", "none", "--trials", "4", "--set", "budget.iterations=25"]
RUNNING = TrialState.RUNNING


def epochs_told(trials: list[FrozenTrial]) -> int:
    return sum(len(trial.intermediate_values) for trial in trials)


def in_the_middle(sctune: Any, name: str, wait_until: Callable[..., None], enough: int = 3) -> None:
    """Wait until the study has told some epochs, with trials running."""

    def running() -> bool:
        if not (sctune.study(name) / "study.json").exists():
            return False
        trials = sctune.record(name)
        return epochs_told(trials) >= enough and any(trial.state == RUNNING for trial in trials)

    wait_until(running, 100, "a running trial")


@pytest.fixture(scope="module")
def undisturbed(sctune: Any, smoke: list[str]) -> dict[str, Any]:
    """The same search, left alone."""
    document: dict[str, Any] = sctune.json(*smoke, *LONG, "--name", "undisturbed")
    return document


def check_whole(name: str, trials: int, sctune: Any, runs_of: Any, history: Any) -> None:
    """Optuna and MLflow hold each trial once, and each of its epochs once, with the same values."""
    stored = sctune.record(name)
    assert [trial.number for trial in stored] == list(range(trials))
    assert {trial.state for trial in stored} == {TrialState.COMPLETE}
    runs = runs_of(name)
    assert runs.keys() == {None, *range(trials)}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for trial in stored:
        expected = sorted(trial.intermediate_values.items())
        assert [epoch for epoch, _ in expected] == list(range(1, EPOCHS + 1))
        assert trial.value == expected[-1][1]
        run = runs[trial.number]
        assert run.data.tags["state"] == "COMPLETE"
        for metric in ("selection_auroc", "loss", "pasted_fraction"):
            points = history(run.info.run_id, metric)
            assert [step for step, _ in points] == list(range(1, EPOCHS + 1)), metric
        assert history(run.info.run_id, "selection_auroc") == expected


def check_same_curves(name: str, undisturbed: dict[str, Any], sctune: Any, runs_of: Any, history: Any) -> int:
    """Trials with the same parameters have the same curves as in the search that was left alone; gives their number.

    The sampler draws from another seed after a resume, so only the trials of the first launch are there in both.
    """
    whole = {json.dumps(trial["params"]): trial["number"] for trial in undisturbed["trials"]}
    ours, theirs = runs_of(name), runs_of("undisturbed")
    both = 0
    for trial in sctune.record(name):
        number = whole.get(json.dumps(trial.user_attrs["params"]))
        if number is not None:
            both += 1
            for metric in ("selection_auroc", "loss"):
                same = history(theirs[number].info.run_id, metric)
                assert history(ours[trial.number].info.run_id, metric) == same
    return both


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_search_goes_on(
    number: signal.Signals,
    undisturbed: dict[str, Any],
    sctune: Any,
    smoke: list[str],
    runs_of: Any,
    history: Any,
    wait_until: Callable[..., None],
) -> None:
    name = f"stopped-{number.name}"
    with sctune.started(*smoke, *LONG, "--name", name) as process:
        in_the_middle(sctune, name, wait_until)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        asked = time.monotonic()
        out, err = process.communicate(timeout=60)
        seconds = time.monotonic() - asked
    assert process.returncode == 3, err
    assert f"sctune resume {name}" in out
    assert "Traceback" not in err
    assert seconds < 20, f"left {seconds:.0f} s after the signal"
    stopped = sctune.record(name)
    assert any(trial.state == RUNNING for trial in stopped)
    assert {trial.state for trial in stopped} <= {RUNNING, TrialState.COMPLETE}
    assert all(run.info.status in ("KILLED", "FINISHED") for run in runs_of(name).values())
    document = sctune.json("resume", name)
    assert document["stopped"] is False
    check_whole(name, 4, sctune, runs_of, history)
    again = {trial.number: trial.user_attrs["attempt"] for trial in sctune.record(name)}
    assert all(again[trial.number] == (2 if trial.state == RUNNING else 1) for trial in stopped)
    assert check_same_curves(name, undisturbed, sctune, runs_of, history) >= len(stopped)


def test_a_killed_driver_loses_nothing(
    undisturbed: dict[str, Any],
    sctune: Any,
    smoke: list[str],
    runs_of: Any,
    history: Any,
    wait_until: Callable[..., None],
) -> None:
    with sctune.started(*smoke, *LONG, "--name", "killed") as process:
        in_the_middle(sctune, "killed", wait_until, enough=5)
        refused = sctune("resume", "killed", code=2)
        assert f"process {process.pid}" in refused.stderr
        assert refused.stderr.count("\n") == 1
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
    before = {trial.number: dict(trial.intermediate_values) for trial in sctune.record("killed")}
    sctune("resume", "killed")
    check_whole("killed", 4, sctune, runs_of, history)
    for trial in sctune.record("killed"):
        assert trial.intermediate_values.items() >= before.get(trial.number, {}).items()
    assert check_same_curves("killed", undisturbed, sctune, runs_of, history) >= len(before)


def test_a_finished_study_takes_more_trials(
    undisturbed: dict[str, Any], sctune: Any, runs_of: Any, history: Any
) -> None:
    more = sctune.json("resume", "undisturbed", "--trials", "+2")
    assert more["trials"][:4] == undisturbed["trials"]
    check_whole("undisturbed", 6, sctune, runs_of, history)
    points = [json.dumps(trial["params"]) for trial in more["trials"]]
    assert len(set(points)) == 6
    assert more["best_value"] >= undisturbed["best_value"]
    # nothing is left to do: the same again changes nothing
    assert sctune.json("resume", "undisturbed")["trials"] == more["trials"]
    sctune("resume", "undisturbed", "--trials", "2", code=2)


def test_the_time_budget_stops_a_search(sctune: Any, smoke: list[str], runs_of: Any, history: Any) -> None:
    done = sctune(*smoke, *LONG, "--name", "budget", "--time-budget", "9s", code=3)
    assert "sctune resume budget" in done.stdout
    assert len(sctune.record("budget")) < 4 or any(trial.state == RUNNING for trial in sctune.record("budget"))
    spent = sctune("resume", "budget", "--time-budget", "1s", code=2)
    assert "time budget" in spent.stderr
    sctune("resume", "budget", "--time-budget", "10m")
    check_whole("budget", 4, sctune, runs_of, history)
    launches = json.loads((sctune.study("budget") / "study.json").read_text())["launches"]
    assert [launch["reason"] for launch in launches] == ["stopped", "done"]
    assert all(first["ended"] <= second["started"] for first, second in pairwise(launches))
