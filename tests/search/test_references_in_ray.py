"""The references of a launch as tasks in a real Ray: what is told of each, and what leaves the search unharmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from sctune.config import Task
from sctune.report import EpochReport
from sctune.search.cluster.connection import RAY_ENVIRONMENT, Resources
from sctune.search.plan.references import Limit
from sctune.search.run import references
from sctune.search.run.references import ReferenceRuns
from sctune.search.study.references import Reference, read_references
from sctune.search.study.study import Study
from sctune.trial.building import TrialSpec
from tests.builders import FEW, make_manifest, make_space

TASKS = (Task(seed=1), Task(seed=2))
SPEC = TrialSpec(
    config={},
    tasks=list(TASKS),
    storage="",
    cache="",
    checkpoint_epochs=[],
    checkpoint_interval=0,
    splits={},
    weights_sha256={},
    versions={},
)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
        yield
        ray.shutdown()


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    # methods that are there: their configurations are made here, and never built
    space = make_space(tmp_path, parameters=FEW)
    made = Study.create(tmp_path / "root", make_manifest(space, tasks=TASKS, references=("deviation",)))
    yield made
    made.record.close()


Work = Callable[[Mapping[str, Any], Mapping[str, Any], str], dict[str, Any]]


def run(study: Study, monkeypatch: pytest.MonkeyPatch, work: Work, **changes: Any) -> list[Reference]:
    """What is told of the references, each of which is `work`; local functions travel by value."""
    ended: list[Reference] = []
    fields: dict[str, Any] = {"stopping": lambda: False, "limit": Limit(60, "the least"), "concurrent": 2} | changes
    resources = Resources(4, 0, 1.0, 0.0, fields.pop("concurrent"), 1)
    monkeypatch.setattr(references, "run_reference", work)
    ReferenceRuns(study, SPEC, resources, ended.append, **fields).run()
    return ended


def stored(study: Study) -> Reference:
    (one,) = read_references(study.manifest, study.record.load_references())
    return one


def make_work(folder: Path, failing: str = "") -> Work:
    """Leaves a file for each call; the objective is the seed's tenth."""

    def work(spec: Mapping[str, Any], fields: Mapping[str, Any], key: str) -> dict[str, Any]:
        began = time.time()
        time.sleep(0.5)
        (folder / f"{key}-{began}").write_text(f"{began} {time.time()}")
        if key == failing:
            return {"failure": {"kind": "DataError", "message": f"{key} is bad"}, "log": ["warning: w"]}
        value = int(key.removeprefix("seed")) / 10
        report = EpochReport(1, 1, {"selection_auroc": value, "seconds": 1.0}, {key: [value]})
        return {"report": report.to_dict()}

    return work


def calls(folder: Path) -> list[tuple[float, float]]:
    return [tuple(map(float, path.read_text().split())) for path in folder.iterdir()]  # type: ignore[misc]


@pytest.mark.parametrize("concurrent", [1, 2])
def test_each_task_once_and_no_more_at_a_time(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrent: int
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    (one,) = run(study, monkeypatch, make_work(folder), concurrent=concurrent)
    assert one.value == pytest.approx(0.15) and one == stored(study)
    (first, second) = sorted(calls(folder))
    assert concurrent == 2 or second[0] >= first[1]
    assert run(study, monkeypatch, make_work(folder)) == [] and len(calls(folder)) == 2, "it is in the record"


def test_a_failure_is_told_and_tried_again_by_the_next_launch(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    (one,) = run(study, monkeypatch, make_work(folder, failing="seed1"), concurrent=1)
    assert one.failure == {"kind": "DataError", "message": "seed1 is bad"} and one.state == "FAIL"
    assert len(calls(folder)) == 1, "its other task is not worth the time"
    (again,) = run(study, monkeypatch, make_work(folder), concurrent=1)
    assert (again.state, again.failure) == ("COMPLETE", None) and len(calls(folder)) == 3


def test_a_lost_worker_is_a_failure_in_one_line(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(spec: Mapping[str, Any], fields: Mapping[str, Any], key: str) -> dict[str, Any]:
        import os

        os._exit(1)

    (one, *_) = run(study, monkeypatch, work, concurrent=1)
    assert one.failure is not None and one.failure["kind"] == "WorkerCrashedError"
    assert "\n" not in one.failure["message"]


def test_no_more_than_their_share_of_the_time(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(spec: Mapping[str, Any], fields: Mapping[str, Any], key: str) -> dict[str, Any]:
        import time

        if key == "seed2":
            time.sleep(300)
        report = EpochReport(1, 1, {"selection_auroc": 0.5, "seconds": 1.0}, {key: [0.5]})
        return {"report": report.to_dict()}

    # time enough for the first one's worker to start on a busy machine
    (one,) = run(study, monkeypatch, work, limit=Limit(12, "10 % of the time budget"))
    assert one.failure == {
        "kind": "TimeLimit",
        "message": "it was not done within 12 s, which is 10 % of the time budget",
    }
    assert one == stored(study) and one.missing == ("seed2",)
    # its worker has been ended, so that a trial finds its cores
    assert ray.get(ray.remote(lambda: True).options(num_cpus=4).remote(), timeout=60)


def test_a_stop_is_no_failure(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    assert run(study, monkeypatch, make_work(folder), stopping=lambda: True) == []
    assert stored(study).state is None and stored(study).missing == ("seed1", "seed2")
