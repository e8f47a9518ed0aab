"""One search that is stopped, killed, continued and enlarged: no trial is lost, none is there twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

NAME = "interrupted"
EPOCHS = 4
TRIALS = 5
# trials of some seconds each, so that a stop always meets running ones; a checkpoint after every epoch
LONG = ["--sampler", "random", "--scheduler", "none", "--trials", TRIALS, "--checkpoint-interval", "0"]
LONG += ["--set", "budget.iterations=20"]
RUNNING, COMPLETE = TrialState.RUNNING, TrialState.COMPLETE


def launches(sctune: Any) -> list[dict[str, Any]]:
    manifest: dict[str, Any] = json.loads((sctune.study(NAME) / "study.json").read_text())
    return list(manifest["launches"])


def epochs_told(trials: list[FrozenTrial]) -> int:
    return sum(len(trial.intermediate_values) for trial in trials)


def interrupt(
    sctune: Any, wait_until: Callable[..., None], end: Callable[[Any], None], *words: str, epochs: int
) -> Any:
    """Go on with the study, let `end` stop it once new epochs are told and a trial is running; gives the process."""
    before = epochs_told(sctune.record(NAME))

    def running() -> bool:
        trials = sctune.record(NAME)
        return epochs_told(trials) >= before + epochs and any(trial.state == RUNNING for trial in trials)

    with sctune.started("resume", NAME, *words) as process:
        wait_until(running, 200, "a running trial")
        end(process)
        process.out, process.err = process.communicate(timeout=200)
    return process


def check_stopped(process: Any, sctune: Any, runs_of: Any) -> None:
    assert process.returncode == 3, process.err
    assert f"sctune resume {NAME}" in process.out
    assert "Traceback" not in process.err
    assert any(trial.state == RUNNING for trial in sctune.record(NAME))
    assert {trial.state for trial in sctune.record(NAME)} <= {RUNNING, COMPLETE}
    assert all(run.info.status in ("KILLED", "FINISHED") for run in runs_of(NAME).values())
    assert launches(sctune)[-1]["reason"] == "stopped"


@pytest.mark.timeout(600)
def test_a_search_survives_whatever_ends_it(
    sctune: Any, smoke: list[str], runs_of: Any, history: Any, wait_until: Callable[..., None]
) -> None:
    out_of_time = sctune(*smoke, *LONG, "--name", NAME, "--time-budget", "9s", code=3)
    assert f"sctune resume {NAME}" in out_of_time.stdout
    # the budget is the study's: it is spent, until another one is given
    spent = sctune.here("resume", NAME, code=2).stderr
    assert "the time budget of 9 s is spent" in spent
    assert f"sctune resume {NAME} --time-budget" in spent

    # as a terminal does: the signal goes to every process of the group; test_operate.py sends SIGTERM
    by_hand = interrupt(
        sctune, wait_until, lambda process: os.killpg(process.pid, signal.SIGINT), "--time-budget", "none", epochs=1
    )
    check_stopped(by_hand, sctune, runs_of)

    def refuse_and_kill(process: Any) -> None:
        # held still meanwhile, or it may come to its end before it is killed
        os.killpg(process.pid, signal.SIGSTOP)
        refused = sctune.here("resume", NAME, "--trials", "+9", code=2).stderr
        assert f"process {process.pid}" in refused
        assert refused.count("\n") == 1
        os.killpg(process.pid, signal.SIGKILL)

    killed = interrupt(sctune, wait_until, refuse_and_kill, epochs=2)
    assert killed.returncode == -signal.SIGKILL
    before = {trial.number: dict(trial.intermediate_values) for trial in sctune.record(NAME)}
    document = sctune.json("resume", NAME, "--trials", "+1")
    assert (document["stopped"], len(document["trials"])) == (False, TRIALS + 1)
    assert [launch["reason"] for launch in launches(sctune)] == ["stopped", "stopped", None, "done"]
    check_whole(TRIALS + 1, sctune, runs_of, history)
    for trial in sctune.record(NAME):
        assert trial.intermediate_values.items() >= before.get(trial.number, {}).items()
    check_curves(sctune, runs_of, history)


def check_whole(trials: int, sctune: Any, runs_of: Any, history: Any) -> None:
    """Optuna and MLflow hold each trial once, and each of its epochs once, with the same values."""
    stored = sctune.record(NAME)
    assert [trial.number for trial in stored] == list(range(trials))
    assert {trial.state for trial in stored} == {COMPLETE}
    assert len({json.dumps(trial.user_attrs["params"]) for trial in stored}) == trials
    runs = runs_of(NAME)
    assert runs.keys() == {None, *range(trials)}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for trial in stored:
        expected = sorted(trial.intermediate_values.items())
        assert [epoch for epoch, _ in expected] == list(range(1, EPOCHS + 1))
        assert trial.value == expected[-1][1]
        run = runs[trial.number]
        assert run.data.tags["state"] == "COMPLETE"
        assert history(run.info.run_id, "selection_auroc") == expected
        for metric in ("loss", "pasted_fraction"):
            points = history(run.info.run_id, metric)
            assert [step for step, _ in points] == list(range(1, EPOCHS + 1)), metric


def check_curves(sctune: Any, runs_of: Any, history: Any) -> None:
    """Two trials that were continued have the curves that they have when they are trained in one go, value by value.

    Those of the others: test_the_winning_configuration_trains_to_the_same_value.
    """
    from sctune.search.study.study import Study
    from sctune.train.trainer import Trainer

    base = Study.open(sctune.home / "studies", NAME).manifest.trial_config()
    runs = runs_of(NAME)
    continued = [trial for trial in sctune.record(NAME) if trial.user_attrs["attempt"] > 1]
    assert len(continued) >= 2
    # each is trained here once more
    for trial in continued[:2]:
        whole = [report.metrics for report in Trainer(base.override(trial.user_attrs["params"])).fit()]
        for metric in ("selection_auroc", "loss"):
            told = history(runs[trial.number].info.run_id, metric)
            assert told == [(epoch, metrics[metric]) for epoch, metrics in enumerate(whole, 1)], (trial.number, metric)
