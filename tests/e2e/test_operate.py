"""A search in the background, looked after with the commands of an operator; and the same as a job of a Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAME = "background"
# trials of some seconds each, so that a stop always meets running ones
LONG = ["--sampler", "random", "--scheduler", "none", "--trials", 2, "--checkpoint-interval", "0"]
LONG += ["--set", "budget.iterations=20"]
# a second worker takes as long to start as a trial trains
ONE = ["--max-concurrent", 1]


def alive(pid: int) -> bool:
    from sctune.search.study.process import process_start

    return process_start(pid) is not None


@pytest.fixture
def guard(sctune: Any) -> Iterator[list[int]]:
    """Process groups that nothing may outlive, whatever a test asserts."""
    groups: list[int] = []
    yield groups
    for group in groups:
        sctune.end_group(group)


def epochs_logged(sctune: Any, name: str) -> int:
    return sum(path.read_text().count(" epoch ") for path in (sctune.study(name) / "logs").glob("trial-*.log"))


@pytest.mark.timeout(600)
def test_a_search_in_the_background_from_its_start_to_its_deletion(
    sctune: Any, smoke: list[str], guard: list[int], wait_until: Callable[..., None], tmp_path: Path, runs_of: Any
) -> None:
    note = tmp_path / "note.json"
    hook = ["--notify", f"cat > {note}.new && mv {note}.new {note}"]
    assert (
        "there is no folder" in sctune.here("search", "--detach", "--name", "bad", "--data", "/nowhere", code=2).stderr
    )
    assert not sctune.study("bad").exists()

    # a terminal that is closed sends SIGHUP to the whole session
    with sctune.started(*smoke, *LONG, *ONE, "--name", NAME, "--detach", "--json", *hook) as process:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        started = json.loads(out)
        guard.append(started["driver"]["pid"])
    assert (started["study"], started["driver"]["job"]) == (NAME, None)
    assert "selection by extra" in err  # the plan
    assert os.getsid(started["driver"]["pid"]) == started["driver"]["pid"]

    wait_until((sctune.study(NAME) / "logs" / "trial-00000.log").exists, 60, "the first trial")
    with sctune.started("logs", NAME, "0", "--follow") as following:
        wait_until(lambda: epochs_logged(sctune, NAME) >= 1, 180, "an epoch")
        assert "has ended: stopped" in sctune("stop", NAME).stdout
        followed, _ = following.communicate(timeout=60)
    assert not alive(started["driver"]["pid"])
    assert "start: launch 1, attempt 1: augment.threshold=0.4" in followed
    told = json.loads(note.read_text())
    assert (told["study"], told["state"], told["trials"]) == (NAME, "stopped", 2)
    console = (sctune.study(NAME) / "logs" / "console.log").read_text()
    assert f"sctune resume {NAME}" in console and "Traceback" not in console

    note.unlink()
    resumed = sctune.json("resume", NAME, *ONE, "--detach", *hook)
    guard.append(resumed["driver"]["pid"])
    status = sctune.json("status", NAME)
    assert status["driver"] == resumed["driver"]
    assert [launch["reason"] for launch in status["launches"]][:1] == ["stopped"]
    refused = sctune("delete", NAME, "--yes", code=2).stderr
    assert f"is being run by process {resumed['driver']['pid']}" in refused
    assert "trial 77" in sctune("logs", NAME, "77", code=2).stderr
    lines = sctune("logs", NAME, "--follow", timeout=150).stdout.splitlines()
    assert [line.split(" ", 3)[2:] for line in lines if " launch " in line and "ended" not in line] == [
        ["launch", f"1 of {NAME}: process {started['driver']['pid']} on {started['driver']['host']}"],
        ["launch", f"2 of {NAME}: process {resumed['driver']['pid']} on {resumed['driver']['host']}"],
    ]
    wait_until(lambda: note.exists() and not alive(resumed["driver"]["pid"]), 60, "the end")
    told = json.loads(note.read_text())
    assert (told["state"], told["counts"]) == ("done", {"COMPLETE": 2})
    status = sctune.json("status", NAME)
    assert (status["driver"], status["launches"][1]["reason"]) == (None, "done")
    assert (told["best_trial"], told["best_value"]) == (status["best_trial"], status["best_value"])
    assert "end: COMPLETE" in sctune("logs", NAME, "0").stdout

    assert set(runs_of(NAME)) == {None, 0, 1}
    gone = sctune.json("delete", NAME, "--yes")
    assert (gone["mlflow_runs"], gone["model_versions"]) == (3, ["1"])
    assert not sctune.study(NAME).exists()


@pytest.fixture
def cluster(sctune: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real cluster of one node with a dashboard on the loopback address; needs ray[default]."""
    pytest.importorskip("aiohttp_cors", reason="needs ray[default]")
    # sockets of Ray do not fit into the folder of a test
    folder = Path(f"/tmp/sctune-{os.getpid()}")
    words = ["start", "--head", "--port=0", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    words += ["--dashboard-port=0", "--num-cpus=2", "--num-gpus=0", f"--temp-dir={folder}", "--block"]
    code = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    environment = {**sctune.env, "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if "ray start --address=" in line:
                    break
            address = line.partition("--address='")[2].partition("'")[0]
            assert address
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            time.sleep(2)
            sctune.end_group(process.pid)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_as_a_ray_job(
    sctune: Any, smoke: list[str], cluster: str, wait_until: Callable[..., None], tmp_path: Path
) -> None:
    shared = ["--storage-path", tmp_path / "shared", "--address", cluster]
    refused = sctune(*smoke, "--name", "jobbed", *shared, "--detach", "--notify", "http://127.0.0.1:1/SECRET", code=2)
    assert "SCTUNE_NOTIFY" in refused.stderr and "SECRET" not in refused.stderr
    bad = sctune("search", "--data", "/nowhere", "--name", "jobbed", *shared, "--detach", code=2)
    assert "there is no folder" in bad.stderr
    assert not sctune.study("jobbed").exists()

    started = sctune.json(*smoke, *LONG, "--name", "jobbed", *shared, "--detach")
    job = started["driver"]["job"]
    assert job.startswith("sctune-jobbed-")
    assert job in sctune("status", "jobbed").stdout
    wait_until(lambda: epochs_logged(sctune, "jobbed") >= 1, 100, "an epoch")
    assert "has ended: stopped" in sctune("stop", "jobbed").stdout
    again = sctune.json("resume", "jobbed", "--address", cluster, "--detach")
    assert again["driver"]["job"] not in (None, job)
    lines = sctune("logs", "jobbed", "--follow", timeout=200).stdout
    assert f"Ray job {job}" in lines and f"Ray job {again['driver']['job']}" in lines
    assert {row["state"] for row in sctune.json("status", "jobbed")["trials"]} == {"COMPLETE"}


def test_without_a_job_server_it_says_so(sctune: Any, smoke: list[str]) -> None:
    done = sctune(*smoke, "--detach", "--address", "127.0.0.1:1", "--name", "nobody", code=2)
    assert "127.0.0.1:1" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not sctune.study("nobody").exists()
