"""Fresh seeds in every mode and setting: folds of their own, and pools that never mix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sctune.config import Task, load_profile
from sctune.confirm.candidates import Candidate
from sctune.confirm.plan import confirm_plan
from sctune.data.split import split_for
from sctune.errors import StudyError
from sctune.search.study.content import content_digest
from sctune.search.study.manifest import DataSpec, SelectionSpec
from sctune.search.study.study import Study
from sctune.tracking.server import default_tracking_uri
from tests.builders import make_manifest, make_space

CHOSEN = [Candidate("trial-0", {"augment.threshold": 0.6}, 0, 0.7), Candidate("reference", {"augment.threshold": 0.4})]


def study_of(folder: Path, source: Path, tasks: list[Task], mode: str, **values: Any) -> Study:
    """A study on disk whose splits are those of its tasks."""
    first = tasks[0]
    data = {"data.source": str(source), "data.setting": first.setting, "data.known_class": first.known_class}
    base = load_profile("smoke").override({**data, "model.weights": "random", "data.selection": mode, **values})
    space = make_space(folder, base, parameters={"augment.threshold": {"type": "float", "low": 0.5, "high": 0.9}})
    splits = {task.key: split_for(base.for_task(task), task) for task in tasks}
    digests = {key: split.digest for key, split in splits.items()}
    changes = {"tasks": tuple(tasks), "splits": digests, "selection": SelectionSpec(mode=mode), "folds": 3}
    manifest = make_manifest(
        space,
        tracking_uri=default_tracking_uri(folder),
        storage_path=str(folder / "studies" / "s"),
        config=space.base.model_dump(),
        data=DataSpec(name="stripes", digest=content_digest(splits)),
        **changes,
    )
    return Study.create(folder / "studies", manifest)


def test_folds_are_those_of_the_new_seed(tmp_path: Path, image_folder: Path) -> None:
    source = str(image_folder)
    base = load_profile("smoke").override({"data.source": source, "data.selection": "seen", "data.n_anomalies": 8})
    whole = Task(source=source, seed=42, folds=3)
    folds = split_for(base, whole).folds
    tasks = [whole.model_copy(update={"fold": fold, "folds": folds}) for fold in range(folds)]
    study = study_of(tmp_path, image_folder, tasks, "seen", **{"data.n_anomalies": 8})
    plan = confirm_plan(study, "s-confirm", CHOSEN, (1001, 1002, 1003))
    for seed in (1001, 1002, 1003):
        mine = [task for task in plan.manifest.tasks if task.seed == seed]
        wanted = split_for(base, Task(source=source, seed=seed, folds=3)).folds
        assert [(task.fold, task.folds) for task in mine] == [(fold, wanted) for fold in range(wanted)]
    assert set(plan.splits) == set(plan.manifest.splits) == {task.key for task in plan.manifest.tasks}
    assert plan.manifest.confirms == study.manifest.study_id and plan.manifest.trials == 2


def test_classes_of_other_tasks_are_said(tmp_path: Path, image_folder: Path) -> None:
    tasks = [Task(source=str(image_folder), setting="hard", known_class=name, seed=42) for name in ("patch", "spot")]
    study = study_of(tmp_path, image_folder, tasks, "extra", **{"data.n_anomalies": 4})
    plan = confirm_plan(study, "s-confirm", CHOSEN, (1001,))
    assert {task.known_class for task in plan.manifest.tasks} == {"patch", "spot"}
    assert any("12 test images of patch are development images" in line for line in plan.warnings)


def test_one_class_in_the_test_is_refused_before_anything_is_trained(tmp_path: Path, image_folder: Path) -> None:
    source = tmp_path / "good"
    (source / "ok").mkdir(parents=True)
    for path in (image_folder / "train" / "good").iterdir():
        (source / "ok" / path.name).write_bytes(path.read_bytes())
    study = study_of(tmp_path, source, [Task(source=str(source), setting="anomaly-free", seed=42)], "auto")
    with pytest.raises(StudyError, match="has no anomalous test image"):
        confirm_plan(study, "s-confirm", CHOSEN, (1001,))
    assert not (tmp_path / "studies" / "s-confirm").exists()
