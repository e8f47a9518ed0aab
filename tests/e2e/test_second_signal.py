"""Two Ctrl-C: the driver ends at once, with the exit code of a stop and the line that goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.timeout(600)
def test_a_second_ctrl_c_has_the_exit_code_of_a_stop(
    sctune: Any, smoke: list[str], wait_until: Callable[..., None]
) -> None:
    # a trial that is in the middle of an epoch does not stop between the two signals
    more = ["--name", "twice", "--trials", 2, "--max-concurrent", 1, "--scheduler", "none"]
    more += ["--set", "budget.iterations=400", "--set", "data.image_size=160"]

    def running() -> bool:
        there = (sctune.study("twice") / "study.json").exists()
        return there and any(trial.state.name == "RUNNING" for trial in sctune.record("twice"))

    with sctune.started(*smoke, *more) as process:
        wait_until(running, 120, "a running trial")
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 3, out + err
    assert "ended at once by a second signal; go on with `sctune resume twice`" in err
    assert "Traceback" not in err
    assert any(trial.state.name == "RUNNING" for trial in sctune.record("twice"))
    sctune("status", "twice")


def test_an_interrupt_before_there_is_a_study(sctune: Any, smoke: list[str]) -> None:
    with sctune.started(*smoke, "--name", "early") as process:
        time.sleep(1.5)  # in the imports, or in the plan
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=200)
    assert not (sctune.study("early") / "study.json").exists()
    assert process.returncode in (130, -signal.SIGINT), out + err
