"""Whatever the tracking server or a disk does: the search is not held up, and every point arrives once, later.

A gate on a port of its own stands before one real server, and lets through, hangs, refuses, answers 500, or takes the
request and loses the answer.
"""

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
from sctune.tracking import server
from sctune.tracking.server import default_tracking_uri
from sctune.tracking.stored import StoredRun, read_study
from sctune.tracking.writer import Writer

T0 = 1_700_000_000_000
EPOCHS = 4
METRICS = (OBJECTIVE, "loss")
FIVE_HUNDRED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"


class Gate:
    """A port that leads to `target`; mode: open, hang, refuse, error or lose (the answer)."""

    def __init__(self, target: int) -> None:
        self.mode = "open"
        self.met = 0  # connections that came while the way was not open
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
                self.met += self.mode != "open"
                threading.Thread(target=self._serve, args=(client, self.mode), daemon=True).start()

    def _serve(self, client: socket.socket, mode: str) -> None:
        with suppress(OSError):
            if mode == "hang":
                while client.recv(65536):
                    pass
            elif mode == "error":
                client.recv(65536)
                client.sendall(FIVE_HUNDRED)
            elif mode != "refuse":
                self._lead_through(client, lose=mode == "lose")
        self._end(client)

    def _lead_through(self, client: socket.socket, lose: bool) -> None:
        with socket.create_connection(("127.0.0.1", self._target)) as there:
            self._open.add(there)

            def back() -> None:
                with suppress(OSError):
                    while answer := there.recv(65536):
                        if lose:
                            break
                        client.sendall(answer)
                self._end(client)

            threading.Thread(target=back, daemon=True).start()
            while request := client.recv(65536):
                there.sendall(request)
            self._end(there)

    def _end(self, one: socket.socket) -> None:
        self._open.discard(one)
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@pytest.fixture
def gate(mlflow_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 2)
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


@pytest.mark.parametrize("mode", ["hang", "refuse", "error", "lose"])
def test_an_outage_delays_and_loses_nothing(tmp_path: Path, gate: Gate, mode: str) -> None:
    study = f"outage-{mode}"
    writer = Writer(gate.uri, tmp_path / "j.jsonl")
    put_all(writer, [study_start(study), *trial_events(study, 0)])
    assert writer.drain(60) == 0
    gate.set(mode)
    put_all(writer, [*trial_events(study, 1), *trial_events(study, 2)])
    wait_for(lambda: writer.last_error is not None, "an error")
    assert gate.met > 0
    assert writer.undelivered > 0
    gate.set("open")
    assert writer.drain(60) == 0
    assert (writer.last_error, writer.rejected, writer.owed) == (None, 0, False)
    writer.close()
    check_whole(gate.uri, study, 3)


@pytest.mark.parametrize("mode", ["hang", "error"])
def test_gone_for_the_whole_search_and_sent_by_the_next_writer(tmp_path: Path, gate: Gate, mode: str) -> None:
    study = f"gone-{mode}"
    gate.set(mode)
    events = [study_start(study), *(event for trial in range(3) for event in trial_events(study, trial))]
    writer = Writer(gate.uri, tmp_path / "j.jsonl")
    put_all(writer, events)
    wait_for(lambda: gate.met > 0, "a request")
    assert writer.drain(0.5) == len(events)
    assert (writer.lost, writer.owed) == (0, False), "all of it is in the journal"
    writer.close()
    gate.set("open")
    later = Writer(gate.uri, tmp_path / "j.jsonl")
    assert later.drain(60) == 0
    later.close()
    check_whole(gate.uri, study, 3)


def test_a_full_disk_under_the_journal(tmp_path: Path, gate: Gate, small_disk: Callable[[int], Path]) -> None:
    """While nothing can be written the queue is bounded; what it has no room for is owed, and said so later too."""
    study = "full"
    disk = small_disk(64)
    journal = disk / "j.jsonl"
    gate.set("hang")
    writer = Writer(gate.uri, journal, queue_limit=20)
    put_all(writer, [study_start(study), *trial_events(study, 0)])
    wait_for(lambda: journal.stat().st_size > 0, "the journal")
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 512)
    lost_trials = [event for trial in range(1, 40) for event in trial_events(study, trial)]
    put_all(writer, lost_trials)
    assert 0 < writer.lost <= len(lost_trials)
    assert writer.undelivered <= 1 + 6 + len(lost_trials) - writer.lost, "the queue holds no more than its limit"
    wait_for(lambda: writer.owed, "the mark")
    writer.close()

    (disk / "filler").unlink()
    gate.set("open")
    later = Writer(gate.uri, journal)
    assert later.owed, "a later process knows that events are missing"
    # as a resume does: the record is told again, whole
    put_all(later, [study_start(study), *(event for trial in range(40) for event in trial_events(study, trial))])
    later.replayed()
    assert later.drain(60) == 0
    later.close()
    check_whole(gate.uri, study, 40)
    again = Writer(gate.uri, journal)
    assert not again.owed
    again.close()


def test_a_full_disk_for_a_while_loses_nothing(tmp_path: Path, gate: Gate, small_disk: Callable[[int], Path]) -> None:
    study = "soon-free"
    disk = small_disk(64)
    gate.set("refuse")
    writer = Writer(gate.uri, disk / "j.jsonl")
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 512)
    put_all(writer, [study_start(study), *trial_events(study, 0), *trial_events(study, 1)])
    wait_for(lambda: "No space left" in str(writer.last_error), "a line about the disk")
    (disk / "filler").unlink()
    gate.set("open")
    assert writer.drain(60) == 0
    assert (writer.lost, writer.owed, writer.rejected) == (0, False, 0)
    writer.close()
    check_whole(gate.uri, study, 2)


def test_a_full_disk_under_mlflow(tmp_path: Path, empty_store: Path, small_disk: Callable[[int], Path]) -> None:
    size = empty_store.stat().st_size // 1024
    disk = small_disk(size + 64)
    shutil.copyfile(empty_store, disk / "mlflow.db")
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 512)
    uri = default_tracking_uri(disk)
    writer = Writer(uri, tmp_path / "j.jsonl")
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
    metrics = {OBJECTIVE: 0.5, "loss": 1.0, **{f"score_{number}": float(number) for number in range(3000)}}
    large = {"kind": "report", "study": study, "trial": 0, "time": T0 + 1, "step": 1, "metrics": metrics}
    writer = Writer(gate.uri, tmp_path / "j.jsonl")
    put_all(writer, [study_start(study), trial_events(study, 0)[0], large])
    assert writer.drain(60) == 0
    assert writer.rejected == 0
    writer.close()
    (run,) = [run for run in read_study(gate.uri, study, ["score_0", "score_2999"]) if run.role == "trial"]
    assert [run.points[f"score_{number}"][0].value for number in (0, 2999)] == [0.0, 2999.0]
