"""Two real searches with one seed: on one slot, and on two with a kill in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_slots_and_a_kill_change_no_digit(
    sctune: Any, smoke: list[str], wait_until: Callable[..., None], tmp_path: Path
) -> None:
    words = ["--trials", 8, "--sampler", "tpe", "--scheduler", "asha", "--sampler-seed", 3, "--look-behind", 2]
    # the sampler learns of trials from the start
    space = tmp_path / "space.yaml"
    space.write_text("name: two\nparameters:\n  optim.lr: {type: float, low: 0.00001, high: 0.01, log: true}\n")
    words += ["--space", space]
    sctune(*smoke, *words, "--name", "one-slot", "--max-concurrent", 1)
    with sctune.started(*smoke, *words, "--name", "two-slots", "--max-concurrent", 2) as process:
        record = sctune.study("two-slots") / "record.db"
        wait_until(
            lambda: record.exists() and sum(trial.state.is_finished() for trial in sctune.record("two-slots")) >= 3,
            200,
            "the end of three trials",
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    assert any(not trial.state.is_finished() for trial in sctune.record("two-slots"))
    sctune("resume", "two-slots")
    one, two = (
        [
            (trial.number, trial.params, trial.state.name, trial.value, trial.intermediate_values)
            for trial in sctune.record(name)
        ]
        for name in ("one-slot", "two-slots")
    )
    assert one == two
    assert {state for _, _, state, _, _ in one} == {"COMPLETE", "PRUNED"}
