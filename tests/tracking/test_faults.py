"""Lost answers and full disks on either side: nothing is lost, and nothing arrives twice. More in test_away.py."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sctune.report import OBJECTIVE
from sctune.tracking.server import default_tracking_uri
from sctune.tracking.stored import StoredRun, read_study
from sctune.tracking.writer import Writer

# a server that shares two cores with others may take a minute to start
pytestmark = pytest.mark.timeout(240)

T0 = 1_700_000_000_000
EPOCHS = 4
METRICS = (OBJECTIVE, "loss")


class Gate:
    """A port that leads to a server on port `target`; mode: open, refuse, or lose (the answers about new runs)."""

    def __init__(self, target: int) -> None:
        self.mode = "open"
        self.lost = 0  # answers
        self._target = target
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mode: str) -> None:
        """From now on, also for connections that are open."""
        self.mode = mode
        for one in list(self._open):
            self._end(one)

    def close(self) -> None:
        self._listener.close()
        self.set("refuse")

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.add(client)
                threading.Thread(target=self._serve, args=(client, self.mode), daemon=True).start()

    def _serve(self, client: socket.socket, mode: str) -> None:
        with suppress(OSError):
            if mode != "refuse":
                self._lead_through(client)
        self._end(client)

    def _lead_through(self, client: socket.socket) -> None:
        unanswered = threading.Event()
        with socket.create_connection(("127.0.0.1", self._target)) as there:
            self._open.add(there)

            def back() -> None:
                with suppress(OSError):
                    while answer := there.recv(65536):
                        if unanswered.is_set():
                            self.lost += 1
                            break
                        client.sendall(answer)
                self._end(client)

            threading.Thread(target=back, daemon=True).start()
            while request := client.recv(65536):
                if self.mode == "lose" and b"/runs/create HTTP" in request:
                    unanswered.set()
                there.sendall(request)
            self._end(there)

    def _end(self, one: socket.socket) -> None:
        self._open.discard(one)
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@pytest.fixture
def gate(mlflow_server: Any) -> Iterator[Gate]:
    gate = Gate(mlflow_server.port)
    yield gate
    gate.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Gives a file system of so many KiB; called again, it has another size."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = False

    def sized(kib: int) -> Path:
        nonlocal mounted
        options = f"{'remount,' if mounted else ''}size={kib}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode != 0:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
        mounted = True
        return folder

    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root and mount(8)")
    yield sized
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def study_start(study: str) -> dict[str, Any]:
    return {"kind": "study", "study": study, "trial": None, "time": T0, "name": study, "params": {}, "tags": {}}


def trial_events(study: str, trial: int) -> list[dict[str, Any]]:
    """A whole trial: start, reports with times of their own, end."""
    common = {"study": study, "trial": trial}
    start = {"kind": "trial_start", **common, "time": T0 + trial, "params": {"threshold": trial}, "tags": {}}
    reports = [
        {
            "kind": "report",
            **common,
            "time": T0 + 100 * trial + step,
            "step": step,
            "metrics": {OBJECTIVE: step / 10 + trial, "loss": 1 / step},
        }
        for step in range(1, EPOCHS + 1)
    ]
    tags = {"state": "COMPLETE"}
    return [start, *reports, {"kind": "trial_end", **common, "time": T0 + 99, "status": "COMPLETE", "tags": tags}]


def put_all(writer: Writer, events: list[dict[str, Any]]) -> None:
    for event in events:
        writer.put(event)


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {timeout:g} s"
        time.sleep(0.05)


def check_whole(uri: str, study: str, trials: int) -> None:
    """One run per trial and one for the study; every point once, with its first time; every end told."""
    runs = read_study(uri, study, METRICS)
    assert [run.role for run in runs].count("study") == 1
    children = {run.trial: run for run in runs if run.role != "study"}
    assert sorted(children) == list(range(trials))
    assert len(runs) == trials + 1, "nothing is there twice"
    for number, run in children.items():
        check_trial(number, run)


def check_trial(number: int, run: StoredRun) -> None:
    assert (run.status, run.tags["state"], run.params) == ("FINISHED", "COMPLETE", {"threshold": str(number)})
    expected = {event["step"]: event for event in trial_events("", number) if event["kind"] == "report"}
    for metric in METRICS:
        points = [(point.step, point.value, point.time) for point in run.points[metric]]
        assert sorted(points) == [
            (step, event["metrics"][metric], event["time"]) for step, event in sorted(expected.items())
        ]


def test_a_lost_answer_makes_no_second_run(tmp_path: Path, gate: Gate) -> None:
    """The server has done what was asked, "create run" too, and the sender does not know it."""
    study = "lost-answers"
    writer = Writer(gate.uri)
    put_all(writer, [study_start(study), *trial_events(study, 0)])
    assert writer.drain(60) == 0
    gate.set("lose")
    put_all(writer, [*trial_events(study, 1), *trial_events(study, 2)])
    assert writer.drain(120) == 0
    assert gate.lost == 2, "one for each new run: the next try found it"
    assert (writer.last_error, writer.rejected, writer.dropped) == (None, 0, 0)
    writer.close()
    check_whole(gate.uri, study, 3)


def test_a_full_disk_under_mlflow(tmp_path: Path, empty_store: Path, small_disk: Callable[[int], Path]) -> None:
    size = empty_store.stat().st_size // 1024
    disk = small_disk(size + 64)
    shutil.copyfile(empty_store, disk / "mlflow.db")
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 512)
    uri = default_tracking_uri(disk)
    writer = Writer(uri)
    put_all(writer, [study_start("f"), *(event for trial in range(4) for event in trial_events("f", trial))])
    wait_for(lambda: "full" in str(writer.last_error), "an error of the database")
    assert writer.undelivered > 0
    (disk / "filler").unlink()
    small_disk(size + 8192)
    assert writer.drain(60) == 0
    assert writer.rejected == 0
    writer.close()
    check_whole(uri, "f", 4)


def test_a_report_with_thousands_of_values(tmp_path: Path, gate: Gate) -> None:
    study = "large"
    metrics = {OBJECTIVE: 0.5, "loss": 1.0, **{f"score_{number}": float(number) for number in range(1500)}}
    large = {"kind": "report", "study": study, "trial": 0, "time": T0 + 1, "step": 1, "metrics": metrics}
    writer = Writer(gate.uri)
    put_all(writer, [study_start(study), trial_events(study, 0)[0], large])
    assert writer.drain(150) == 0
    assert writer.rejected == 0
    writer.close()
    (run,) = [run for run in read_study(gate.uri, study, ["score_0", "score_1499"]) if run.role == "trial"]
    assert [run.points[f"score_{number}"][0].value for number in (0, 1499)] == [0.0, 1499.0]
