from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sctune.errors import TrackingError
from sctune.tracking import server


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://me:secret@host:5000/path", "https://host:5000/path"),
        ("postgresql+psycopg://me:se/cr@et?@db/mlflow", "postgresql+psycopg://db/mlflow"),
        ("postgresql://db/mlflow?user=me&password=secret", "postgresql://db/mlflow"),
        ("https://token@host", "https://host"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
    ],
)
def test_safe_uri_holds_no_credentials(uri: str, shown: str) -> None:
    assert server.safe_uri(uri) == shown


def test_messages_hold_no_credentials() -> None:
    uri = "http://me:secret@host:5000"
    text = f"request to {uri}/api failed, tried http://me:secret@other too\nsecond line"
    assert server.scrub(text, uri) == "request to http://host:5000/api failed, tried http://other too"


def test_a_local_store_is_made_and_accepted(tmp_path: Path) -> None:
    server.check_tracking(server.default_tracking_uri(tmp_path / "new"))
    assert (tmp_path / "new" / "mlflow.db").is_file()


@pytest.mark.parametrize("uri", ["ftp://host", "file:///tmp/runs", "databricks", "nonsense"])
def test_an_unsupported_scheme_is_refused(uri: str) -> None:
    with pytest.raises(TrackingError, match="unsupported; use one of http") as caught:
        server.check_tracking(uri)
    assert "\n" not in str(caught.value)


def test_a_closed_port_is_refused_in_one_line_without_the_password() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(TrackingError, match=rf"127.0.0.1:{port} cannot be used") as caught:
        server.check_tracking(f"http://me:secret@127.0.0.1:{port}")
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_port_that_never_answers_is_refused_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        with pytest.raises(TrackingError, match=r"cannot be used: .*timed? ?out"):
            server.check_tracking(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_store_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database" * 100)
    with pytest.raises(TrackingError, match="cannot be used"):
        server.check_tracking(server.default_tracking_uri(tmp_path))
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(TrackingError, match="cannot be written"):
        server.check_tracking(f"sqlite:///{tmp_path}/folder.db")


def test_the_ui_listens_on_loopback_and_shows_no_password() -> None:
    command = server.ui_command("sqlite:////a/mlflow.db", 5001)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5001"
    assert command[command.index("--artifacts-destination") + 1] == "file:///a/mlartifacts"
    uri = "postgresql+psycopg://me:secret@db/mlflow"
    assert "secret" not in " ".join(server.ui_command(uri, 5001))
    assert server.ui_environment(uri)["MLFLOW_BACKEND_STORE_URI"] == uri
    with pytest.raises(TrackingError, match="open that address"):
        server.ui_command("http://host:5000", 5001)
