"""The services as compose.yaml starts them, with users and keys: saved, destroyed, brought back; the study goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import _free_port
from tests.services import PASSWORDS, Mlflow, Storage, backup, database_server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NAME = "kept"
USER = ("driver", "canary-driver-62ad")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    if find_spec("flask_wtf") is None:
        pytest.skip("needs flask-wtf for MLflow's users; `make test-cluster` brings it")
    with ExitStack() as entered:
        yield entered


def test_a_study_survives_the_loss_of_its_services(
    stack: ExitStack, sctune: Any, smoke: list[str], tmp_path: Path
) -> None:
    port = _free_port()
    first = stack.enter_context(ExitStack())
    server = first.enter_context(database_server())
    storage = Storage(tmp_path / "disk", ())
    first.callback(storage.stop)
    storage.make_buckets()
    mlflow = Mlflow(tmp_path, server, storage, port)
    first.callback(mlflow.stop)
    check_doors(mlflow)
    create_user(mlflow)
    check_missing_model(mlflow)

    driver = type(sctune)(tmp_path / "driver")
    driver.home.mkdir()
    driver.env |= storage.env | {
        "PGPASSWORD": PASSWORDS["STUDIES_DB_PASSWORD"],
        "MLFLOW_TRACKING_USERNAME": USER[0],
        "MLFLOW_TRACKING_PASSWORD": USER[1],
        "RAY_TMPDIR": "/tmp",
    }
    places = ["--storage", f"postgresql://studies@127.0.0.1:{server.port}/studies", "--tracking-uri", mlflow.url]
    driver(*smoke, "--name", NAME, "--trials", "2", *places, "--storage-path", "s3://sctune/checkpoints")
    before = driver.json("status", NAME)
    assert driver.json("status", NAME, "--check")["agrees"] is True
    made = backup(
        server, "save", tmp_path / "backups", "--files", "s3://mlflow", "--files", "s3://sctune", more=storage.env
    )
    stranger = type(sctune)(driver.home)
    stranger.env = driver.env | {"MLFLOW_TRACKING_PASSWORD": "wrong"}
    refused = stranger(*smoke, "--name", "other", *places, code=2).stderr
    assert "failed with error code 401" in refused.splitlines()[-1], refused

    first.close()
    shutil.rmtree(tmp_path / "disk")
    server = stack.enter_context(database_server(server.port))
    storage = Storage(tmp_path / "disk", storage.ports)
    stack.callback(storage.stop)
    storage.make_buckets()
    assert "files" in backup(server, "restore", made, more=storage.env)
    stack.callback(Mlflow(tmp_path, server, storage, port).stop)

    assert driver.json("status", NAME) == before
    assert driver.json("status", NAME, "--check")["agrees"] is True
    again = driver.json("resume", NAME, "--trials", "+1", "--storage", places[1])
    assert [trial["number"] for trial in again["trials"] if trial["state"] in ("COMPLETE", "PRUNED")] == [0, 1, 2]
    assert driver.json("status", NAME, "--check")["agrees"] is True


def check_doors(mlflow: Mlflow) -> None:
    """Nothing is told to nobody, and names of other servers are not answered to."""
    search = f"{mlflow.url}/api/2.0/mlflow/experiments/search?max_results=1"
    admin = ("admin", Mlflow.ADMIN)
    assert requests.get(search, timeout=10).status_code == 401
    assert requests.get(search, auth=("admin", "admin"), timeout=10).status_code == 401
    assert requests.get(search, auth=admin, timeout=10).status_code == 200
    for host, code in (("mlflow:5000", 200), ("evil.example.com", 403)):
        assert requests.get(search, auth=admin, headers={"Host": host}, timeout=10).status_code == code, host


def check_missing_model(mlflow: Mlflow) -> None:
    """A model that is not there is none for a user who is no administrator too, where MLflow says 403."""
    from sctune.deploy.registry import aliased
    from sctune.tracking.server import mlflow_client

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", USER[0])
        patch.setenv("MLFLOW_TRACKING_PASSWORD", USER[1])
        client = mlflow_client(mlflow.url)
        assert aliased(client, "nowhere") is None
        client.create_registered_model("somewhere")
        assert aliased(client, "somewhere") is None


def create_user(mlflow: Mlflow) -> None:
    row = dict(zip(("username", "password"), USER, strict=True))
    answer = requests.post(
        f"{mlflow.url}/api/2.0/mlflow/users/create", json=row, auth=("admin", Mlflow.ADMIN), timeout=30
    )
    assert answer.status_code == 200, answer.text
