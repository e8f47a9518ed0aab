"""A real race over seeds, killed in the middle: what is left goes on, and record, MLflow and replay agree."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

REPLICATES = 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_race_goes_on(sctune: Any, smoke: list[str], wait_until: Callable[..., None]) -> None:
    words = ["--trials", 6, "--scheduler", "race", "--replicates", REPLICATES, "--grace", 4, "--sampler", "random"]
    with sctune.started(*smoke, *words, "--name", "raced", "--max-concurrent", 2) as process:
        record = sctune.study("raced") / "record.db"
        wait_until(
            lambda: record.exists() and any("promoted" in trial.user_attrs for trial in sctune.record("raced")),
            300,
            "a second replicate",
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    sctune("resume", "raced")
    trials = sctune.record("raced")
    assert {trial.state.name for trial in trials} == {"COMPLETE", "PRUNED"} and len(trials) == 6
    full = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert full and all(max(trial.intermediate_values) == 4 * REPLICATES for trial in full)
    # the mean over its seeds, each of which has its model and its scores
    best = max(full, key=lambda trial: trial.value)
    last = best.user_attrs[f"report:{4 * REPLICATES}"]["metrics"]
    values = [last[f"selection_auroc/seed{seed}"] for seed in (42, 43, 44)]
    assert best.value == pytest.approx(sum(values) / REPLICATES)
    assert set(best.user_attrs["scores"]) == {"seed42", "seed43", "seed44"}
    assert "agree" in sctune("status", "raced", "--check").stdout
    stored = json.loads(sctune("status", "raced", "--json").stdout)
    assert stored["certainty"]["trial"] == best.number and stored["certainty"]["trials"] == 6
    assert json.loads(sctune("replay", "raced", "--json").stdout)["agrees"]
    page = sctune.study("raced") / "report.html"
    sctune("report", "raced", "--out", page)
    assert f"chance that trial {best.number} (3 replicates) is the best of them" in page.read_text()
    assert "nothing to tell it apart from" not in page.read_text()
    sctune("figures", "raced", "--task", "seed43", "--limit", 6)
