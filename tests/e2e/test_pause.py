"""A rule of another package pauses trials: the driver is killed meanwhile, and a resume knows whom to promote."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Sctune
from tests.plugins import documented, write_package

NAME = "paused"
TRIALS, FACTOR = 3, 2
"""The factor is the profile's: the best of three goes on, and the other two do not."""

KILLED = f"""

class KilledOnce(FirstLook):
    # when all trials are paused, and one of them is about to go on
    def promote(self):
        import os, signal, time
        mark = os.environ["PAUSE_TEST_MARK"]
        if len(self._values) < {TRIALS}:
            return []
        if not os.path.exists(mark):
            open(mark, "w").close()
            # what was told is in the record by then
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().promote()
"""


@pytest.mark.timeout(600)
def test_a_driver_killed_while_trials_are_paused_loses_none(sctune: Any, smoke: list[str], tmp_path: Path) -> None:
    package = write_package(
        tmp_path / "package",
        "first_look",
        documented("A rule") + KILLED,
        {"sctune.rules": {"killed-once": "first_look:KilledOnce"}},
    )
    ours = Sctune(sctune.home)
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    ours.env |= {"PYTHONPATH": path, "PAUSE_TEST_MARK": str(tmp_path / "mark")}
    words = ["--sampler", "random", "--scheduler", "killed-once", "--trials", TRIALS, "--name", NAME]
    # so every trial after the first has the worker of one that was paused
    one = ["--max-concurrent", 1]
    ours(*smoke, *words, *one, "--set", "budget.epochs=3", code=-signal.SIGKILL, timeout=200)
    paused = ours.record(NAME)
    assert [trial.state.name for trial in paused] == ["RUNNING"] * TRIALS
    assert [list(trial.intermediate_values) for trial in paused] == [[1]] * TRIALS
    assert [trial.user_attrs["paused"] for trial in paused] == [1] * TRIALS
    # a search that was planned with a rule needs its package
    missing = sctune("resume", NAME, code=2).stderr
    assert "unknown scheduler 'killed-once'" in missing

    ours("resume", NAME, *one, timeout=200)
    ended = ours.record(NAME)
    ranked = sorted(ended, key=lambda trial: (-trial.intermediate_values[1], trial.number))
    promoted = {trial.number for trial in ranked[: TRIALS // FACTOR]}
    for trial, before in zip(ended, paused, strict=True):
        # epochs that were told before the kill were not trained again
        assert trial.user_attrs["report:1"] == before.user_attrs["report:1"]
        log = (ours.study(NAME) / "logs" / f"trial-{trial.number:05d}.log").read_text()
        assert log.count("start: launch") == (2 if trial.number in promoted else 1)
        assert "paused by killed-once after epoch 1" in log
        if trial.number in promoted:
            assert (trial.state.name, list(trial.intermediate_values)) == ("COMPLETE", [1, 2, 3])
        else:
            assert (trial.state.name, trial.user_attrs["stop_reason"]) == (
                "PRUNED",
                "paused by killed-once at epoch 1 and not promoted",
            )
    ours("status", NAME, "--check")
