"""Files logged to runs that are there already."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from sctune.tracking.run_files import log_run_files
from sctune.tracking.runs import Runs
from sctune.tracking.server import default_tracking_uri, find_parent_run, mlflow_client


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "made" / "a.png", tmp_path / "made" / "b.csv"]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text(path.name)
    return paths


def start_study(uri: str, study: str = "s1") -> None:
    events: list[dict[str, Any]] = [
        {"kind": "study", "study": study, "name": "first", "time": 1},
        {"kind": "trial_start", "study": study, "trial": 0, "time": 2},
        {"kind": "trial_start", "study": study, "trial": 1, "time": 3},
    ]
    Runs(uri).apply(events)


def artifacts(uri: str, study: str) -> dict[str | None, set[str]]:
    """Trial number, None for the study's run -> files under figures/."""
    client = mlflow_client(uri)
    runs = client.search_runs(
        [client.get_experiment_by_name("sctune").experiment_id], f"tags.`sctune.study_id` = '{study}'"
    )
    return {
        run.data.tags.get("sctune.trial"): {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
        for run in runs
    }


def test_files_go_to_the_named_runs_alone(local_uri: str, files: list[Path]) -> None:
    start_study(local_uri)
    start_study(local_uri, "s2")
    assert log_run_files(local_uri, "s1", [1, None], files, "figures") == []
    assert artifacts(local_uri, "s1") == {None: {"figures/a.png", "figures/b.csv"}, "0": set(), "1": {
        "figures/a.png", "figures/b.csv",
    }}  # fmt: skip
    assert all(not names for names in artifacts(local_uri, "s2").values())
    # again: the same files, no second run
    assert log_run_files(local_uri, "s1", [1, None], files, "figures") == []
    assert len(artifacts(local_uri, "s1")) == 3


def test_a_run_that_is_not_there_is_not_made(local_uri: str, files: list[Path]) -> None:
    start_study(local_uri)
    (line,) = log_run_files(local_uri, "s1", [7], files, "figures")
    assert "no run of trial 7" in line
    (line,) = log_run_files(local_uri, "other", [None], files, "figures")
    assert "no run of the study" in line
    assert len(artifacts(local_uri, "s1")) == 3
    assert find_parent_run(local_uri, "other") is None


def test_a_store_that_is_gone_is_not_made_again(tmp_path: Path, files: list[Path]) -> None:
    (line,) = log_run_files(default_tracking_uri(tmp_path / "away"), "s1", [None], files, "figures")
    assert "its store" in line and "is gone" in line
    assert not (tmp_path / "away").exists()


def test_a_server_that_does_not_answer_is_one_line_without_its_password(files: list[Path]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (line,) = log_run_files(f"http://me:secret@127.0.0.1:{port}", "s1", [0, None], files, "figures")
    assert line.startswith(f"the figures are not in MLflow (http://127.0.0.1:{port})")
    assert "secret" not in line and "\n" not in line


def test_a_server_that_accepts_and_is_silent_is_given_up(files: list[Path]) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        (line,) = log_run_files(uri, "s1", [0], files, "figures", limit_s=0.5)
    assert line == f"the figures are not in MLflow: {uri} took longer than 0.5 s"
