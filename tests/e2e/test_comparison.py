"""A search whose MLflow server is gone from soon after the start until after the end: all of it is delivered later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sctune.tracking.server import TRIAL_TAG, check_tracking, default_tracking_uri, mlflow_client
from sctune.tracking.stored import find_runs, histories
from tests.mlflow_server import MlflowServer

NAME = "alone"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    check_tracking(default_tracking_uri(tmp_path))
    server = MlflowServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_without_its_tracking_server(
    sctune: Any, smoke: list[str], server: MlflowServer, wait_until: Callable[..., None]
) -> None:
    with sctune.started(*smoke, "--name", NAME, "--tracking-uri", server.uri) as process:
        wait_until(lambda: (sctune.study(NAME) / "study.json").exists() and sctune.record(NAME), 100, "the first trial")
        server.stop()
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert f"`sctune sync {NAME}`" in out, "what is left, and the way out"
    assert "Traceback" not in err

    refused = sctune("status", NAME, "--check", code=2).stderr
    assert server.uri in refused and refused.count("\n") == 1
    assert "MLflow was not brought to the record" in sctune("sync", NAME, "--timeout", "3s", code=3).stdout

    server.start()
    differs = sctune.json("status", NAME, "--check", code=3)
    assert not differs["agrees"]
    assert {one["repair"] for one in differs["differences"]} == {f"sctune sync {NAME}"}
    sent = sctune("sync", NAME)
    assert "record and MLflow agree" in sent.stdout
    assert "Traceback" not in sent.stderr
    agreed = sctune.json("status", NAME, "--check")
    assert (agreed["agrees"], agreed["trials"], agreed["running"]) == (True, len(sctune.record(NAME)), None)
    check_runs(server.uri, sctune)


def check_runs(uri: str, sctune: Any) -> None:
    """Every trial once, every epoch once, nothing RUNNING; the pictures and the best model are there."""
    from sctune.search.study.study import Study

    study_id = Study.open(sctune.home / "studies", NAME).manifest.study_id
    client = mlflow_client(uri)
    runs = {run.data.tags.get(TRIAL_TAG): run for run in find_runs(client, study_id)}
    trials = sctune.record(NAME)
    assert len(find_runs(client, study_id)) == len(runs) == len(trials) + 1
    assert not [run for run in runs.values() if run.info.status == "RUNNING"]
    for trial in trials:
        run_id = runs[str(trial.number)].info.run_id
        points = histories(client, [run_id], "selection_auroc")[run_id]
        assert sorted((point.step, point.value) for point in points) == sorted(trial.intermediate_values.items())
    parent = runs[None].info.run_id
    assert {file.path for file in client.list_artifacts(parent, "study")} >= {"study/leaderboard.csv"}
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    assert client.get_model_version_by_alias(NAME, "candidate").version == version.version
    assert version.run_id == parent
