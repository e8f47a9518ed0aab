"""Notification hooks: a real command and a real web server get the document; what goes wrong stays a warning."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from sctune.errors import ConfigError
from sctune.search.run import notify as hooks
from sctune.search.run.notify import notify, read_hooks

DOCUMENT = {"format_version": 1, "study": "s", "state": "done", "best_value": 0.9}


class Server(ThreadingHTTPServer):
    """Answers /fail with 500, /hang never, all else with 200; received: what was posted."""

    received: list[dict[str, object]]
    released: Event


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.path.startswith("/hang"):
            self.server.released.wait(20)
        self.send_response(500 if self.path.startswith("/fail") else 200)
        self.end_headers()

    def log_message(self, format: str, *words: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        made.received, made.released = [], Event()
        Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.released.set()
        made.shutdown()


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_command_and_url_get_the_document(server: Server, tmp_path: Path) -> None:
    script = f"cat > {tmp_path}/document; echo $SCTUNE_STUDY $SCTUNE_STATE > {tmp_path}/words"
    assert notify([script, url(server, "/ok")], DOCUMENT) == []
    assert json.loads((tmp_path / "document").read_text()) == DOCUMENT
    assert (tmp_path / "words").read_text() == "s done\n"
    assert server.received == [DOCUMENT]


def test_trouble_is_a_warning_without_the_secret(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "LIMIT_S", 3.0)
    monkeypatch.setattr(hooks, "URL_LIMIT_S", 2.0)
    told = [
        "exit 7 # SECRET",
        "no-such-command-at-all SECRET",
        "sleep 60 # SECRET",
        url(server, "/fail?token=SECRET"),
        url(server, "/hang/SECRET"),
        "http://127.0.0.1:1/SECRET",
    ]
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        lines = sorted(notify(told, DOCUMENT))
    assert time.monotonic() - start < 60  # the command was not waited for
    assert [line.partition(":")[2].strip() for line in lines] == [
        "ended with exit code 7",
        "ended with exit code 127",
        "was ended after 3 s",
        "the server answered 500",
        "ReadTimeout",
        "ConnectionError",
    ]
    assert "SECRET" not in caplog.text + "".join(lines)
    assert len(caplog.records) == 6


def test_a_stopped_study_leaves_a_slow_command_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "STOPPED_LIMIT_S", 0.2)
    flag = tmp_path / "flag"
    done = tmp_path / "done"
    slow = f"while ! test -e {flag}; do sleep 0.1; done; cat > {done}.new && mv {done}.new {done}"
    lines = notify([slow], DOCUMENT | {"state": "stopped"})
    assert "left to itself" in lines[0]
    flag.touch()
    end = time.monotonic() + 30
    while not done.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert json.loads(done.read_text())["state"] == "stopped"


def test_hooks_of_the_environment_are_taken_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCTUNE_NOTIFY", "mail me\n\nhttps://example.org/x\n")
    assert read_hooks(["first"]) == ("first", "mail me", "https://example.org/x")
    assert read_hooks([]) == ()


@pytest.mark.parametrize("bad", ["", " ", "ftp://example.org/SECRET", "http:///SECRET", "two\nlines"])
def test_bad_hooks_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="--notify") as caught:
        read_hooks([bad])
    assert "SECRET" not in str(caught.value)
