"""The shipped script on a real Slurm of two nodes: ended by its time limit, queued again, and on with the study."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm import SEARCHED, Slurm, missing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

EPOCHS = 4
LIMIT_MIN = 6
"""Slurm counts in minutes, and tells the script up to one earlier than it is asked to."""


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slu", dir="/tmp"))
    folder.chmod(0o755)
    running = Slurm(folder, nodes=2, cpus=1)
    try:
        yield running
    finally:
        for number in running.run("squeue", "--noheader", "--format=%i", check=False).split():
            running.run("scancel", "--signal=KILL", "--full", number, check=False)
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


def wait(condition: Any, seconds: float, log: Path) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text() if log.exists() else "no log"
        time.sleep(0.5)


def test_the_time_limit_puts_the_job_back_and_it_goes_on(
    slurm: Slurm, sctune: Any, smoke: list[str], repository: Path, tmp_path: Path
) -> None:
    log, shared = tmp_path / "job.log", tmp_path / "shared"
    slurm.environment |= {
        **{key: value for key, value in sctune.env.items() if key != "RAY_AUTH_TOKEN"},
        "PATH": f"{Path(sys.executable).parent}:{SEARCHED}",
        "SLURM_CONF": slurm.environment["SLURM_CONF"],
        "SCTUNE_SHARED": str(shared),
    }
    options = [f"--time={LIMIT_MIN}", "--signal=B:USR1@75", "--nodes=2", "--gpus-per-node=0", f"--output={log}"]
    more = ["--trials", "2000", "--scheduler", "none", "--set", f"budget.epochs={EPOCHS}", "--checkpoint-interval", "0"]
    more += ["--min-gain", "0"]
    script = str(repository / "cluster" / "slurm.sbatch")
    number = slurm.run("sbatch", "--parsable", *options, script, *smoke, *more, cwd=tmp_path)
    study = shared / "studies" / f"slurm-{number}"

    def launches() -> list[dict[str, Any]]:
        path = study / "study.json"
        return json.loads(path.read_text())["launches"] if path.exists() else []

    def states() -> list[str]:
        from sctune.search.study.study import Study

        found = Study.open(study.parent, study.name)
        try:
            return [trial.state.name for trial in found.record.load()]
        finally:
            found.record.close()

    wait(lambda: slurm.job(number).get("Restarts") == "1", LIMIT_MIN * 60 + 90, log)
    said = log.read_text()
    assert "stopped at the time limit; the job goes back into the queue" in said, said
    (first,) = launches()
    assert first["reason"] == "stopped", said
    before = states()
    assert before, said

    def began() -> bool:
        # Slurm lets a job that was put back wait for two minutes, and takes no change while it clears up
        slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)
        return slurm.job(number)["JobState"] == "RUNNING"

    wait(began, 240, log)
    done = before.count("COMPLETE")
    wait(lambda: len(launches()) == 2 and states().count("COMPLETE") > done, LIMIT_MIN * 60, log)
    # a stop that somebody asks for is one
    slurm.run("scancel", "--signal=TERM", "--batch", number)
    wait(lambda: slurm.job(number)["JobState"] not in ("RUNNING", "COMPLETING"), 60, log)
    job = slurm.job(number)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "1"), log.read_text()
    # a stop by itself, or Slurm's signal
    assert job["ExitCode"] in ("3:0", "143:0"), log.read_text()
    assert [launch["reason"] for launch in launches()] == ["stopped", "stopped"]

    check_log(log.read_text(), number)
    check_trials(study)
    assert not Path(f"/tmp/sctune-{number}").exists()
    print(log.read_text())


def check_log(said: str, number: str) -> None:
    starts = re.findall(rf"^job {number} on n\[0-1\], start (\d): sctune (\w+)", said, re.MULTILINE)
    assert starts == [("1", "search"), ("2", "resume")]
    # the head runs no trials, the other node has one CPU
    assert said.count("of 1 CPUs and 0 GPUs on 2 node(s)") == 1


def check_trials(study: Path) -> None:
    """What was done stays, and what was under way went on: no epoch was trained again."""
    for path in sorted((study / "logs").glob("trial-*.log")):
        epochs = [int(epoch) for epoch in re.findall(rf" epoch (\d+)/{EPOCHS} ", path.read_text())]
        assert epochs == sorted(set(epochs)), path.read_text()
