"""MLflow killed and back, hanging, answering 500, on a full disk: the writer loses nothing, and ends in time."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from sctune.errors import TrackingError
from sctune.search.check import check_stored
from sctune.search.sync import sync
from sctune.tracking import server
from sctune.tracking.journal import Journal
from sctune.tracking.stored import find_runs, histories
from sctune.tracking.writer import Writer

STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE)
FULL = Path("/dev/full")


class Gate:
    """Stands before a real MLflow server: passes requests on, answers 500, or accepts and never answers."""

    def __init__(self, target: str) -> None:
        self.mode = "pass"
        self.let_go = threading.Event()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self) -> None:
                gate.handle(self, target)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_any  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def handle(self, request: BaseHTTPRequestHandler, target: str) -> None:
        import requests

        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        status, content = 500, b'{"error_code": "INTERNAL_ERROR", "message": "database or disk is full"}'
        if self.mode == "hang":
            self.let_go.wait()
        if self.mode == "pass":
            headers = {
                key: value for key, value in request.headers.items() if key.lower() not in ("host", "accept-encoding")
            }
            answer = requests.request(request.command, target + request.path, headers=headers, data=body, timeout=30)
            status, content = answer.status_code, answer.content
        try:
            request.send_response(status)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
        except OSError:  # the client has given up meanwhile
            request.close_connection = True

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def gate(mlflow_server: Any) -> Iterator[Gate]:
    made = Gate(mlflow_server.uri)
    yield made
    made.close()


def check_no_repeats(uri: str, study_id: str) -> None:
    client = server.mlflow_client(uri)
    runs = find_runs(client, study_id)
    numbers = [run.data.tags.get(server.TRIAL_TAG) for run in runs]
    assert len(set(numbers)) == len(numbers), "a trial has two runs"
    for points in histories(client, [run.info.run_id for run in runs], "loss").values():
        assert len({point.step for point in points}) == len(points)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", ["hang", "error"])
def test_a_server_that_hangs_or_fails_costs_nothing_and_gets_everything_later(
    mode: str, player: Any, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 2)
    study = player.make_study(tmp_path, gate.uri)
    writer = Writer(gate.uri, study.folder / "tracking.jsonl")
    player.play(study, writer, STATES[:1])
    assert writer.drain(60) == 0
    gate.mode = mode
    player.play(study, writer, STATES[1:], first=1)
    player.end(study, writer)
    began = time.monotonic()
    left = writer.drain(3)
    assert left > 0
    writer.close()
    assert time.monotonic() - began < 30, "bounded, whatever the server does"
    study.record.close()
    lines = (study.folder / "tracking.jsonl").read_text().splitlines()
    assert len(lines) >= left, "all of it is on disk"

    with pytest.raises(TrackingError, match=gate.uri):
        check_stored(tmp_path, "played")
    result = sync("played", tmp_path, 4)
    assert not result.complete
    assert f"{left} events have not reached MLflow" in result.left[0]

    gate.mode = "pass"
    gate.let_go.set()
    player.save_checkpoint(study, 2)
    result = sync("played", tmp_path, 60)
    assert result.complete, result
    assert check_stored(tmp_path, "played").points == 27
    check_no_repeats(gate.uri, study.manifest.study_id)


@pytest.mark.timeout(300)
def test_a_server_that_was_away_the_whole_time(player: Any, tmp_path: Path, mlflow_server: Any) -> None:
    study = player.make_study(tmp_path, mlflow_server.uri, "gone")
    mlflow_server.stop()
    writer = Writer(mlflow_server.uri, study.folder / "tracking.jsonl")
    player.play(study, writer, STATES)
    player.end(study, writer)
    assert writer.drain(1) > 0
    writer.close()
    study.record.close()
    player.save_checkpoint(study, 2)
    mlflow_server.start()
    assert len(check_stored(tmp_path, "gone").differences) == 4, "no run of the study, none of its three trials"
    result = sync("gone", tmp_path, 60)
    assert result.complete, result
    check_no_repeats(mlflow_server.uri, study.manifest.study_id)


def test_a_full_disk_costs_a_bounded_amount_of_memory_and_the_record_makes_up_for_it(
    player: Any, tmp_path: Path, local_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    write = Journal.append

    def append(journal: Journal, events: Any) -> int:
        if full:
            with FULL.open("wb", buffering=0) as device:
                device.write(b"x")  # raises what a full disk does
        return write(journal, events)

    monkeypatch.setattr(Journal, "append", append)
    study = player.make_study(tmp_path, local_uri)
    writer = Writer(local_uri, study.folder / "tracking.jsonl", queue_limit=8)
    player.play(study, writer, STATES)
    assert writer.undelivered == 8
    assert writer.lost > 0
    assert writer.owed
    assert "No space left" in str(writer.last_error)
    full = False
    player.end(study, writer)
    writer.close()
    study.record.close()
    player.save_checkpoint(study, 2)
    assert not check_stored(tmp_path, "played").agrees
    result = sync("played", tmp_path, 60)
    assert result.complete, result


def test_a_journal_that_is_delivered_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    sizes = []
    for block in range(30):
        journal.append([{"kind": "tags", "n": 100 * block + n, "text": "x" * 50} for n in range(100)])
        _, last = journal.read(60)
        journal.mark_delivered(last)
        journal.compact(limit=10_000)
        sizes.append(path.stat().st_size)
        if block % 2:
            journal.mark_delivered(journal.read(1000)[1])
    assert max(sizes) < 60_000
    journal.append([{"kind": "tags", "n": -1}])
    seqs = [json.loads(line)["seq"] for line in path.read_text().splitlines()]
    assert seqs == list(range(seqs[0], 3002)), "no number is missing or given twice"
    again = Journal(path)
    assert (again.last, again.delivered) == (3001, 3000)
    assert [event["n"] for event in again.read(10)[0]] == [-1]


def test_a_batch_that_is_on_its_way_while_the_journal_is_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([{"kind": "tags", "n": n} for n in range(10)])
    journal.mark_delivered(journal.read(6)[1])
    _, last = journal.read(2)
    journal.compact(limit=1)
    journal.append([{"kind": "tags", "n": 10}])
    journal.mark_delivered(last)
    assert [event["n"] for event in journal.read(10)[0]] == [8, 9, 10]


def test_an_event_that_is_no_json_is_left_out_and_holds_up_nothing(tmp_path: Path) -> None:
    circle: dict[str, Any] = {"kind": "tags"}
    circle["tags"] = circle
    journal = Journal(tmp_path / "j.jsonl")
    assert journal.append([{"kind": "tags", "n": 0}, circle, {"kind": "tags", "n": 1}]) == 1
    assert [event["n"] for event in journal.read(10)[0]] == [0, 1]


def test_a_cursor_that_cannot_be_written_only_sends_again_after_a_crash(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([{"kind": "tags", "n": n} for n in range(3)])
    (tmp_path / "j.jsonl.cursor.new").mkdir()  # writing it fails
    journal.mark_delivered(journal.read(2)[1])
    assert journal.delivered == 2
    assert [event["n"] for event in journal.read(10)[0]] == [2]
    assert Journal(tmp_path / "j.jsonl").delivered == 0


def test_the_mark_of_lost_events_survives_the_process(tmp_path: Path) -> None:
    writer = Writer("http://127.0.0.1:9", tmp_path / "j.jsonl", queue_limit=0)
    writer.put({"kind": "tags"})
    writer.close()
    assert json.loads((tmp_path / "j.jsonl.owed").read_text()) == {"format_version": 1, "owed": 1}
    writer = Writer("http://127.0.0.1:9", tmp_path / "j.jsonl")
    assert writer.owed
    writer.replayed()
    writer.close()
    assert not Writer("http://127.0.0.1:9", tmp_path / "j.jsonl").owed
    assert os.stat(tmp_path / "j.jsonl.owed").st_size < 100
