"""Aliases that were lost or moved, versions that sctune did not make, and what comes out of MLflow's bin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import ViewType

from sctune.deploy.register import CANDIDATE, DIGEST_TAG
from sctune.deploy.registry import CHAMPION, aliased, promote
from sctune.files import file_sha256
from sctune.manage.delete import deletion
from sctune.search.reconcile.check import check_stored
from sctune.search.reconcile.delivery import BEST, WEIGHTS, write_model
from sctune.search.reconcile.sync import SyncResult, sync
from sctune.tracking.server import find_experiment, find_parent_run, mlflow_client
from sctune.tracking.stored import find_runs
from sctune.tracking.writer import Writer
from tests.tracking.conftest import end as end_study
from tests.tracking.conftest import make_study, play, played_study

NAME, DATA = "played", "elpv"


class Registered:
    """A finished study whose best model is version 2 under its name, and was deployed as the data's champion."""

    def __init__(self, root: Path, uri: str) -> None:
        self.root = root
        self.study = played_study(root, uri)
        self.client = mlflow_client(uri)
        weights = self.study.folder / BEST / WEIGHTS
        weights.parent.mkdir()
        weights.write_bytes(b"weights")
        write_model(self.study, {"study": NAME, "trial": 3, "params": {"augment.threshold": 0.2}})
        self.parent = str(find_parent_run(uri, self.study.manifest.study_id))
        for name in (NAME, DATA):
            self.client.create_registered_model(name)
        self.version(NAME, {DIGEST_TAG: "of an earlier best"})
        self.version(NAME, {DIGEST_TAG: file_sha256(weights)})
        self.client.set_registered_model_alias(NAME, CANDIDATE, "2")
        for _ in range(2):
            self.version(DATA, {DIGEST_TAG: file_sha256(weights)})
        promote(self.client, DATA, 1, "the gate passed")
        self.client.set_tag(self.parent, "deployed", f"models:/{DATA}/1")
        self.client.set_tag(self.parent, "deployed_as", CHAMPION)
        self.sync()

    def version(self, name: str, tags: dict[str, str]) -> None:
        self.client.create_model_version(name, source=str(self.root), run_id=self.parent, tags=tags)

    def lines(self) -> list[str]:
        return [one.line for one in check_stored(self.root, NAME).differences]

    def sync(self) -> SyncResult:
        return sync(NAME, self.root, 60)


@pytest.fixture
def registered(tmp_path: Path, local_uri: str) -> Registered:
    made = Registered(tmp_path / "studies", local_uri)
    assert made.lines() == []
    return made


def lost_candidate(one: Registered) -> str:
    one.client.delete_registered_model_alias(NAME, CANDIDATE)
    return "trial 3: models:/played@candidate names no version, not the best model, which is version 2"


def moved_candidate(one: Registered) -> str:
    one.client.set_registered_model_alias(NAME, CANDIDATE, "1")
    return "trial 3: models:/played@candidate names version 1, not the best model, which is version 2"


def lost_champion(one: Registered) -> str:
    one.client.delete_registered_model_alias(DATA, CHAMPION)
    return "models:/elpv@champion is gone; it was version 1"


@pytest.mark.parametrize("tamper", [lost_candidate, moved_candidate, lost_champion])
def test_an_alias_of_ours_is_named_and_mended(registered: Registered, tamper: Callable[[Registered], str]) -> None:
    assert tamper(registered) in registered.lines()
    assert registered.sync().complete
    assert aliased(registered.client, NAME, CANDIDATE) == 2
    assert aliased(registered.client, DATA) == 1
    assert registered.lines() == []


def test_what_is_not_ours_is_named_and_left(registered: Registered) -> None:
    registered.version(NAME, {})
    registered.client.set_registered_model_alias(DATA, CHAMPION, "2")
    result = registered.sync()
    assert not result.complete and result.agreement is not None
    version, champion = sorted(registered.lines(), reverse=True)
    assert version.startswith("models:/played/3 was not made by sctune") and "left as it is" in version
    assert champion.startswith("models:/elpv@champion names version 2, which no deployment made")
    assert aliased(registered.client, DATA) == 2
    assert len(registered.client.search_model_versions(f"name = '{NAME}'")) == 3


def test_another_champion_that_was_promoted_is_no_difference(registered: Registered) -> None:
    promote(registered.client, DATA, 2, "the gate passed")
    assert registered.lines() == []
    registered.client.delete_registered_model_alias(DATA, CHAMPION)
    (line,) = registered.lines()
    assert line.startswith("models:/elpv@champion is gone, which no deployment made; the last one was version 2")


def test_a_deployed_version_that_is_gone(registered: Registered) -> None:
    registered.client.delete_model_version(DATA, "1")
    (line,) = registered.lines()
    assert line.startswith("models:/elpv/1, which was deployed as champion, is gone")


def test_a_sync_brings_back_its_own_study_only(tmp_path: Path, local_uri: str) -> None:
    """MLflow restores an experiment with all of its runs, those that were deleted long before it too."""
    root = tmp_path / "studies"
    own = played_study(root, local_uri)
    client = mlflow_client(local_uri)
    other = make_study(root, local_uri, "other")
    sink = Writer(local_uri)
    play(other, sink, epochs=1)
    end_study(other, sink)
    assert sink.drain(60) == 0
    sink.close()
    other.record.close()
    gone = other.manifest.study_id
    assert len(find_runs(client, gone)) == 5
    with deletion(root, "other", keep_runs=False) as found:
        found.run()
    experiment = find_experiment(client, local_uri)
    client.delete_experiment(experiment)
    before = {run.info.run_id for run in client.search_runs([experiment], "", ViewType.ALL)}
    assert sync(own.name, root, 60).complete
    assert find_runs(client, gone) == []
    # its own came back from the bin, and were not made a second time
    assert {run.info.run_id for run in find_runs(client, own.manifest.study_id)} < before
    assert {run.info.run_id for run in client.search_runs([experiment], "", ViewType.ALL)} == before
