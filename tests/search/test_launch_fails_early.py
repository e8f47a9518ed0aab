"""A launch that fails before it has begun changes nothing of the study: not its times, not its run in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sctune.config import load_profile
from sctune.errors import StorageError
from sctune.search.cluster.connection import Resources
from sctune.search.run import launch
from sctune.search.space.definition import load_space
from sctune.search.study.study import Study
from tests.builders import make_manifest


def test_a_storage_that_is_away_at_a_resume_spends_no_time_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = load_space("threshold_patch", load_profile("cpu"), {})
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    study = Study.create(tmp_path, make_manifest(space, tracking_uri=uri, storage_path=str(tmp_path / "s")))
    study.add_launch("2026-01-01T00:00:00+00:00")
    before = study.manifest.launches
    study.record.close()
    again = Study.open(tmp_path, study.name)

    def away(*_: Any) -> None:
        raise StorageError("the storage does not answer")

    monkeypatch.setattr(launch, "selection_labels", lambda *_: {})
    monkeypatch.setattr(launch, "remove_strays", away)
    told: list[Any] = []
    monkeypatch.setattr(launch.Writer, "put", lambda _, event: told.append(event))
    started = launch.RunningLaunch(again, space, {}, Resources(2, 0.0, 1.0, 0.0, 2, 1), None, None, 0.0)
    with again.lock(), pytest.raises(StorageError):
        started.run()
    assert Study.open(tmp_path, study.name).manifest.launches == before
    assert before[0].ended is None and before[0].seconds == 0
    assert told == []
