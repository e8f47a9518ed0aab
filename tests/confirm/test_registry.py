"""Aliases on a real registry: what was the champion before is known, also after several moves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sctune.deploy.registry import HISTORY_TAG, aliased, models_with, only_model, promote, rollback
from sctune.errors import TrackingError
from sctune.tracking.server import default_tracking_uri, mlflow_client


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    folder = tmp_path_factory.mktemp("store")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    return default_tracking_uri(folder)


@pytest.fixture
def client(store: str) -> Iterator[MlflowClient]:
    """A registry that holds the model `cells` in three versions, and nothing else."""
    made = mlflow_client(store)
    made.create_registered_model("cells")
    for number in range(3):
        made.create_model_version("cells", source=f"file:///none/model-{number}")
    yield made
    for model in made.search_registered_models():
        made.delete_registered_model(model.name)


def test_the_way_there_and_back(client: MlflowClient) -> None:
    assert aliased(client, "cells") is None and aliased(client, "nothing") is None
    assert promote(client, "cells", 1, "the gate passed").before is None
    assert promote(client, "cells", 3, "the gate passed").before == 1
    assert promote(client, "cells", 2, "forced (latency): demonstration").before == 3
    for there, before in ((3, 2), (1, 3)):
        move = rollback(client, "cells")
        assert (move.version, move.before, aliased(client, "cells")) == (there, before, there)
    with pytest.raises(TrackingError, match="models:/cells/1 is the first champion"):
        rollback(client, "cells")
    assert aliased(client, "cells") == 1
    history = json.loads(client.get_registered_model("cells").tags[HISTORY_TAG])
    assert [(row["version"], row["reason"]) for row in history] == [
        (1, "the gate passed"),
        (3, "the gate passed"),
        (2, "forced (latency): demonstration"),
        (3, "rollback"),
        (1, "rollback"),
    ]


def test_promoting_the_champion_again_keeps_its_way_back(client: MlflowClient) -> None:
    promote(client, "cells", 1, "first")
    promote(client, "cells", 2, "second")
    promote(client, "cells", 2, "second once more")
    assert rollback(client, "cells").version == 1


def test_a_version_that_is_gone_is_said(client: MlflowClient) -> None:
    promote(client, "cells", 1, "first")
    promote(client, "cells", 2, "second")
    client.delete_model_version("cells", "1")
    with pytest.raises(TrackingError, match="models:/cells/1, the champion before 2, was deleted"):
        rollback(client, "cells")
    assert aliased(client, "cells") == 2


def test_aliases_do_not_know_each_other(client: MlflowClient) -> None:
    promote(client, "cells", 1, "first")
    promote(client, "cells", 2, "try it", alias="staging")
    with pytest.raises(TrackingError, match="is the first staging"):
        rollback(client, "cells", "staging")
    assert (aliased(client, "cells"), aliased(client, "cells", "staging")) == (1, 2)


def test_the_only_model_needs_no_name(client: MlflowClient) -> None:
    with pytest.raises(TrackingError, match="no registered model has a champion yet"):
        only_model(client)
    promote(client, "cells", 1, "first")
    assert only_model(client) == "cells"
    client.create_registered_model("screws")
    client.create_model_version("screws", source="file:///none")
    promote(client, "screws", 1, "first")
    assert models_with(client, "champion") == ["cells", "screws"]
    with pytest.raises(TrackingError, match="name the model: cells, screws"):
        only_model(client)
    with pytest.raises(TrackingError, match="'bolts' has no alias 'champion'; models with a champion: cells, screws"):
        rollback(client, "bolts")


def test_a_long_history_is_cut_and_a_foreign_one_replaced(client: MlflowClient) -> None:
    client.set_registered_model_tag("cells", HISTORY_TAG, "not ours")
    for number in range(45):
        promote(client, "cells", 1 + number % 2, "x" * 1000)
    history = json.loads(client.get_registered_model("cells").tags[HISTORY_TAG])
    assert len(history) == 20 and len(history[0]["reason"]) == 160
