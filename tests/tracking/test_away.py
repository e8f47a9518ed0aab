"""MLflow gone, hanging or answering 500: the writer ends in time, and `sync` delivers everything once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from sctune.errors import TrackingError
from sctune.search.reconcile.check import check_stored
from sctune.search.reconcile.sync import sync
from sctune.tracking import server
from sctune.tracking.stored import find_runs, histories
from sctune.tracking.writer import Writer

STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE)


class Gate:
    """Stands before a real MLflow server: passes requests on, answers 500, or accepts and never answers.

    port: 0 for any that is free.
    """

    def __init__(self, target: str, port: int = 0) -> None:
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

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    study = player.make_study(tmp_path, uri, "gone")
    writer = Writer(uri, study.folder / "tracking.jsonl")
    player.play(study, writer, STATES)
    player.end(study, writer)
    assert writer.drain(1) > 0
    writer.close()
    study.record.close()
    player.save_checkpoint(study, 2)
    back = Gate(mlflow_server.uri, port)
    try:
        assert len(check_stored(tmp_path, "gone").differences) == 4, "no run of the study, none of its three trials"
        result = sync("gone", tmp_path, 60)
        assert result.complete, result
        check_no_repeats(mlflow_server.uri, study.manifest.study_id)
    finally:
        back.close()
