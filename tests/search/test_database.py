"""The record in a real PostgreSQL: addresses, passwords, a restart, and what a missing part is told."""

from __future__ import annotations

import contextlib
import datetime
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from sctune import urls
from sctune.errors import ConfigError, StudyError
from sctune.report import OBJECTIVE, EpochReport
from sctune.search.study.database import check_free, close_database, open_database, read_attrs, storage_url, write_attrs
from sctune.search.study.record import Record


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("postgresql://u:p@h:5/d", "postgresql+psycopg://u@h:5/d"),
        ("postgres://h/d?password=p&sslmode=require", "postgresql+psycopg://h/d?sslmode=require"),
        ("postgresql+psycopg://u:p%40q@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql://h/d", "postgresql+psycopg://h/d"),
        ("sqlite:////a:b@c/d.db", "sqlite:////a:b@c/d.db"),
    ],
)
def test_urls_are_kept_without_their_password(given: str, kept: str) -> None:
    assert storage_url(given) == kept


def test_a_servers_user_goes_too() -> None:
    assert urls.without_secrets("https://user:pw@host:5/x") == "https://host:5/x"


@pytest.mark.parametrize(
    ("url", "bare", "shown"),
    [
        ("postgresql://u:p@h/d?sslmode=require&password=p", "postgresql://u@h/d?sslmode=require", "postgresql://h/d"),
        # refused elsewhere, and the refusal shows it
        ("postgresql://u:se/cr@et?@h/d", "postgresql://h/d", "postgresql://h/d"),
        ("s3://bucket/a@b?region=x", "s3://bucket/a@b?region=x", "s3://bucket/a@b"),
        ("s3://key:secret@bucket/a", "s3://key@bucket/a", "s3://bucket/a"),
        ("a/folder@home", "a/folder@home", "a/folder@home"),
    ],
)
def test_what_is_kept_and_what_is_shown(url: str, bare: str, shown: str) -> None:
    assert (urls.without_secrets(url), urls.without_secrets(url, shown=True)) == (bare, shown)


@pytest.mark.parametrize("url", ["postgresql://u:p@q@h/d", "postgresql://u:p/q@h/d", "postgresql://u:p?q@h/d"])
def test_a_password_that_ends_early_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="%40") as caught:
        storage_url(url)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize("url", ["mysql://u:pw@h/d", "oracle://h/d"])
def test_other_databases_are_refused_with_what_is_supported(url: str) -> None:
    with pytest.raises(StudyError, match=r"SQLite .* PostgreSQL") as caught:
        storage_url(url)
    assert "pw" not in str(caught.value)


def test_the_environment_completes_a_bare_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCTUNE_STORAGE", "postgresql://someone:secret@nowhere/d")
    assert urls.complete("postgresql+psycopg://someone@nowhere/d") == "postgresql+psycopg://someone:secret@nowhere/d"
    assert urls.complete("postgresql+psycopg://other@nowhere/d") == "postgresql+psycopg://other@nowhere/d"
    with urls.secrets_hidden():
        assert "secret" not in urls.complete("postgresql+psycopg://someone@nowhere/d")
    assert "secret" in urls.complete("postgresql+psycopg://someone@nowhere/d")


def test_a_missing_driver_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from sctune.search.study.database import check_free\n"
        "from sctune.errors import StudyError\n"
        "try: check_free('postgresql+psycopg://h/d', 'x')\n"
        "except StudyError as problem: print(problem)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'PostgreSQL needs a driver: pip install "sctune[postgres]"\n'


def test_a_wrong_or_missing_password_says_where_to_give_it(postgres: Any) -> None:
    for password in ("wrong-canary", None):
        bare = storage_url(postgres.url("nowhere", password))
        with pytest.raises(StudyError, match=r"cannot open the record at .*PGPASSWORD") as caught:
            check_free(bare, "x")
        assert "canary" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_server_forgets_a_vanished_client_soon(postgres: Any) -> None:
    storage = open_database(storage_url(postgres.url()))
    with storage.engine.connect() as connection:
        shown = connection.exec_driver_sql("SHOW tcp_keepalives_idle").scalar()
    close_database(storage)
    assert shown == "10"


class LostAnswers:
    """A wire to a server that can be cut between a COMMIT that arrived and the answer to it."""

    def __init__(self, port: int) -> None:
        self._server = port
        self.armed = False
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            cut = threading.Event()
            threading.Thread(target=self._forth, args=(client, server, cut), daemon=True).start()
            threading.Thread(target=self._back, args=(server, client, cut), daemon=True).start()

    def _forth(self, client: socket.socket, server: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self.armed and b"COMMIT" in data:
                    self.armed = False
                    self.cuts += 1
                    cut.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _back(self, server: socket.socket, client: socket.socket, cut: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if cut.is_set():
                    break
                client.sendall(data)
            for end in (client, server):
                end.shutdown(socket.SHUT_RDWR)


def test_each_write_is_whole_when_its_answer_was_lost(postgres: Any) -> None:
    """The server commits and the client does not learn of it, so every kind of write is sent once more."""
    wire = LostAnswers(postgres.port)
    url = storage_url(postgres.url().replace(f":{postgres.port}/", f":{wire.port}/"))
    record = Record(url, "lost", create=True)
    trial = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"x": 0.25},
        distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
        user_attrs={"params": {"x": 0.25}},
    )
    trial.number, trial.datetime_start = 0, datetime.datetime(2026, 1, 1)
    report = EpochReport(1, 1, {OBJECTIVE: 0.5})
    writes = [
        lambda: record.start(trial),
        lambda: record.set_attrs(0, {"attempt": 2}),
        lambda: record.set_study_attrs({"qmc:x": 3}),
        lambda: record.report(0, report, 1000),
        lambda: record.finish(0, TrialState.COMPLETE, 0.5, {"stop_reason": "all epochs done"}),
    ]
    for count, write in enumerate(writes, 1):
        wire.armed = True
        write()
        record.flush()
        assert wire.cuts == count
    (stored,) = record.load()
    assert (stored.number, stored.state, stored.value) == (0, TrialState.COMPLETE, 0.5)
    assert (stored.params, stored.intermediate_values) == ({"x": 0.25}, {1: 0.5})
    assert stored.user_attrs["attempt"] == 2
    assert stored.user_attrs["stop_reason"] == "all epochs done"
    assert record.load_study_attrs()["qmc:x"] == 3
    record.close()
    wire.close()


def test_a_restart_in_between_costs_nothing(postgres: Any) -> None:
    url = storage_url(postgres.url())
    record = Record(url, "restarted", create=True)
    postgres.stop()
    record.set_study_attrs({"qmc:x": 1})
    write = threading.Thread(target=write_attrs, args=(url, "restarted", {"sctune:x": [1]}))
    write.start()
    time.sleep(1.0)
    postgres.start()
    record.flush()
    write.join()
    assert record.load_study_attrs()["qmc:x"] == 1
    assert read_attrs(url, "restarted") == {"sctune:x": [1]}
    record.close()
