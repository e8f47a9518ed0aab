"""What a plan that was made without options of a search (`sctune confirm`) gets of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from sctune.errors import StudyError
from sctune.search.cluster.connection import Resources
from sctune.search.plan.plan import Plan
from sctune.search.run import driver
from sctune.search.run.driver import run_plan
from sctune.search.study.manifest import ResourceSpec
from tests.builders import ANYWHERE, FLAT, make_manifest, make_space


class _SeenError(StudyError):
    pass


@pytest.mark.parametrize(("searched", "given"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_trials_have_the_gpus_that_the_study_was_searched_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searched: float, given: float
) -> None:
    # a machine with a GPU, as Ray tells of it: there is none here
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}])

    @contextmanager
    def connected(_address: str | None) -> Iterator[list[str]]:
        yield []

    monkeypatch.setattr(driver, "session", connected)
    space = make_space(tmp_path, parameters=FLAT, set=ANYWHERE)
    manifest = make_manifest(space, resources=ResourceSpec(cpus=1.0, gpus=searched))
    seen: list[tuple[float, float]] = []

    def look(plan: Plan, resources: Resources) -> None:
        seen.append((plan.manifest.resources.gpus, resources.gpus))
        raise _SeenError("nothing is to be trained")

    with pytest.raises(_SeenError):
        run_plan(Plan(manifest, space, {}, tmp_path / "root", (), ()), on_plan=look)
    assert seen == [(given, given)] and not (tmp_path / "root").exists()
