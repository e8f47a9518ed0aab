"""Which store is meant, and what MLflow would have taken for a folder without a word."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sctune.errors import TrackingError
from sctune.tracking import server
from sctune.tracking.choice import choose_store, default_tracking_uri, resolve_tracking_uri
from sctune.urls import complete


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_local_form_becomes_an_absolute_uri(here: Path) -> None:
    assert resolve_tracking_uri(None, here) == default_tracking_uri(here) == f"sqlite:///{here}/mlflow.db"
    assert resolve_tracking_uri("sqlite:///here.db", Path("/x")) == f"sqlite:///{here}/here.db"
    assert resolve_tracking_uri("sqlite:////a/b.db", Path("/x")) == "sqlite:////a/b.db"
    assert resolve_tracking_uri("runs", Path("/x")) == f"sqlite:///{here}/runs/mlflow.db"
    assert resolve_tracking_uri("./host:5000", Path("/x")) == f"sqlite:///{here}/host:5000/mlflow.db"
    assert resolve_tracking_uri("a.b/c:1.db", Path("/x")) == f"sqlite:///{here}/a.b/c:1.db"
    assert resolve_tracking_uri("http://h:1", Path("/x")) == "http://h:1"
    assert server.artifact_location(f"sqlite:///{here}/mlflow.db") == f"file://{here}/mlartifacts"
    assert server.artifact_location("http://h:1") is None
    assert not list(here.iterdir())


@pytest.mark.parametrize("text", ["localhost:5000", "127.0.0.1:5000", "[::1]:5000", "gpu-3.lab:5000/mlflow"])
def test_a_host_without_a_scheme_is_told_how_to_be_written(text: str) -> None:
    with pytest.raises(TrackingError) as caught:
        resolve_tracking_uri(text, Path("/x"))
    assert f"--tracking-uri '{text}'" in str(caught.value) and f"http://{text};" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "file:runs", "file:/tmp/runs", "file:///tmp/runs", "file://host/runs", "http:/host", "http:host:1", "http://",
        "https:///path", "sqlite:runs.db", "sqlite://runs.db", "sqlite://", "sqlite:///", "sqlite:///:memory:",
        "sqlite+pysqlite:///a.db", "postgresql:host/db", "ftp://host", "databricks", "databricks://profile", "uc:a",
        "C:runs",
    ],
)  # fmt: skip
def test_what_is_no_store_is_refused_in_one_line_with_what_is(text: str, here: Path) -> None:
    with pytest.raises(TrackingError, match=r"write http://host:port or https://... for a server, sqlite:") as caught:
        resolve_tracking_uri(text, Path("/x"))
    assert "\n" not in str(caught.value)
    assert not list(here.iterdir())


@pytest.mark.parametrize("text", ["me:pa55@host:5000", "http:/me:pa55@host", "ftp://me:pa55@host"])
def test_a_refusal_shows_no_password(text: str) -> None:
    with pytest.raises(TrackingError) as caught:
        resolve_tracking_uri(text, Path("/x"))
    assert "pa55" not in str(caught.value)


def test_mlflows_old_store_is_not_taken_for_an_empty_folder(here: Path) -> None:
    (here / "mlruns" / "0").mkdir(parents=True)
    (here / "mlruns" / "0" / "meta.yaml").write_text("name: Default")
    with pytest.raises(TrackingError, match="mlflow migrate-filestore"):
        resolve_tracking_uri("mlruns", Path("/x"))


def test_option_then_our_variable_then_mlflows_then_the_default(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_store(None, here) == (f"sqlite:///{here}/mlflow.db", "the default")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:pw@mlflow:5000")
    assert choose_store(None, here) == ("https://mlflow:5000", "MLFLOW_TRACKING_URI")
    # a later command connects with what the environment holds, and nothing of it is stored
    assert complete("https://mlflow:5000") == "https://me:pw@mlflow:5000"
    monkeypatch.setenv("SCTUNE_TRACKING_URI", "http://ours:5000")
    assert choose_store(None, here) == ("http://ours:5000", "SCTUNE_TRACKING_URI")
    assert choose_store("runs", here) == (f"sqlite:///{here}/runs/mlflow.db", "--tracking-uri")
    monkeypatch.setenv("SCTUNE_TRACKING_URI", "ours:5000")
    with pytest.raises(TrackingError, match=r"^SCTUNE_TRACKING_URI 'ours:5000'"):
        choose_store(None, here)


def test_a_look_makes_nothing(here: Path) -> None:
    server.check_tracking(default_tracking_uri(here / "new" / "deep"), make=False)
    assert not list(here.iterdir())
    with sqlite3.connect(here / "other.db") as other:
        other.execute("CREATE TABLE theirs (x)")
    before = (here / "other.db").read_bytes()
    server.check_tracking(f"sqlite:///{here}/other.db", make=False)
    assert (here / "other.db").read_bytes() == before


def test_a_look_sees_what_cannot_be_written(here: Path) -> None:
    (here / "file").write_text("")
    with pytest.raises(TrackingError, match="cannot be written"):
        server.check_tracking(default_tracking_uri(here / "file" / "runs"), make=False)
    (here / "broken.db").write_text("this is no database" * 100)
    with pytest.raises(TrackingError, match="cannot be used"):
        server.check_tracking(f"sqlite:///{here}/broken.db", make=False)


def test_a_look_reads_a_store_that_is_there(local_uri: str, here: Path) -> None:
    database = here / "mlflow.db"
    before = database.read_bytes()
    server.check_tracking(local_uri, make=False)
    assert database.read_bytes() == before
