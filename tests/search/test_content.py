"""Images that were overwritten under the same names: a study does not go on with them, and says which."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sctune.config import Task, TrialConfig
from sctune.data.split import Split, split_for
from sctune.errors import ChangedDataError
from sctune.search.reconcile.check import check_stored
from sctune.search.run.driver import resume
from sctune.search.study.content import FILES, check_content, content_digest, keep_files, task_digests
from sctune.search.study.manifest import DataSpec
from sctune.search.study.splits import checked_splits, study_splits
from sctune.search.study.study import Study
from sctune.trial.building import TrialSpec
from sctune.trial.trainable import SaliencyCutTrainable
from tests.builders import make_manifest, make_space

ONE, OTHER = "train/good/007.png", "train/good/019.png"


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(image_folder, tmp_path / "data")


@pytest.fixture
def config(tiny: TrialConfig, folder: Path) -> TrialConfig:
    return tiny.override({"data.source": str(folder)})


def splits_of(config: TrialConfig, seeds: tuple[int, ...] = (42,)) -> dict[str, Split]:
    tasks = [Task(source=config.data.source, seed=seed) for seed in seeds]
    return {task.key: split_for(config.for_task(task), task) for task in tasks}


@pytest.fixture
def study(config: TrialConfig, tmp_path: Path) -> Study:
    space = make_space(tmp_path, config, parameters={"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2}})
    splits = splits_of(config, (42, 43))
    manifest = make_manifest(
        space,
        tasks=tuple(Task(source=config.data.source, seed=seed) for seed in (42, 43)),
        splits={key: split.digest for key, split in splits.items()},
        data=DataSpec(name="stripes", digest=content_digest(splits)),
        storage_path=str(tmp_path / "s"),
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}",
    )
    study = Study.create(tmp_path, manifest)
    keep_files(study.folder, splits)
    return study


def overwrite(folder: Path, *names: str) -> None:
    for name in names:
        Image.new("RGB", (72, 72), "red").save(folder / name)


def read(study: Study) -> dict[str, Split]:
    return checked_splits(study.manifest, study.folder)


def test_images_under_the_same_names(study: Study, folder: Path) -> None:
    assert read(study).keys() == {"seed42", "seed43"}
    kept = (folder / ONE).read_bytes()
    overwrite(folder, OTHER, ONE)
    with pytest.raises(ChangedDataError) as caught:
        read(study)
    assert str(caught.value) == (
        f"2 of 62 images of stripes were changed since study s began, the first is {folder / ONE}; put back what they "
        "held, or start a new study"
    )
    # their names are as they were
    assert study_splits(study.manifest)
    (folder / ONE).write_bytes(kept)
    with pytest.raises(ChangedDataError, match=f"1 of 62 images .* the first is {folder / OTHER};"):
        read(study)


def test_other_files_are_told_first(study: Study, folder: Path) -> None:
    (folder / ONE).unlink()
    with pytest.raises(ChangedDataError, match="not those that study s began with"):
        read(study)


@pytest.mark.parametrize("left", [None, b"{", b'{"sets": [3]}', b"\xff"])
def test_a_study_that_did_not_write_them_down(study: Study, folder: Path, left: bytes | None) -> None:
    """Of an earlier version, or begun on another machine: that something changed is known, not what."""
    (study.folder / FILES).unlink()
    if left is not None:
        (study.folder / FILES).write_bytes(left)
    assert read(study)
    overwrite(folder, ONE)
    with pytest.raises(ChangedDataError, match=r"^some images of stripes were changed since study s began; put back"):
        read(study)
    # an earlier version left its confirmations the digest of the study that they confirm
    confirmation = study.manifest.model_copy(update={"confirms": "x"})
    check_content(confirmation, study_splits(study.manifest), study.folder)


def test_what_is_written_down_is_small(study: Study) -> None:
    content = json.loads((study.folder / FILES).read_text())
    (files,) = content["sets"]
    assert content["format_version"] == 1 and len(files) == 62
    assert all(len(digest) == 16 for digest in files.values())


def test_two_roots_of_the_same_contents(config: TrialConfig, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "twin")
    twin = config.override({"data.source": str(tmp_path / "twin")})
    both = {"a": splits_of(config)["seed42"], "b": splits_of(twin)["seed42"]}
    digests = task_digests(both)
    assert digests["a"] == digests["b"] == content_digest({"a": both["a"]}) != content_digest(both)
    overwrite(tmp_path / "twin", ONE)
    changed = task_digests(both)
    assert changed["a"] == digests["a"] != changed["b"]


def test_a_resume_refuses_and_changes_nothing(study: Study, folder: Path, tmp_path: Path) -> None:
    overwrite(folder, ONE)
    before = {path.name for path in study.folder.iterdir()}
    with pytest.raises(ChangedDataError, match=f"the first is {folder / ONE}"):
        resume("s", study_root=tmp_path)
    assert {path.name for path in study.folder.iterdir()} <= before | {"driver.lock"}
    assert Study.open(tmp_path, "s").manifest.launches == ()


def test_check_names_it(study: Study, folder: Path, tmp_path: Path) -> None:
    assert check_stored(tmp_path, "s").agrees
    overwrite(folder, ONE)
    found = check_stored(tmp_path, "s")
    ((kind, text, repair),) = [(one.kind, one.text, one.repair) for one in found.differences]
    assert (kind, repair) == ("data", None) and str(folder / ONE) in text
    shutil.rmtree(folder)
    away = check_stored(tmp_path, "s")
    # the check can be made where the images are not
    assert away.agrees and away.notes[0].startswith("the images were not compared: ")


def test_a_worker_says_so(config: TrialConfig, folder: Path, tmp_path: Path) -> None:
    splits = splits_of(config)
    spec = TrialSpec(
        config=config.model_dump(),
        tasks=[Task(source=config.data.source, seed=42)],
        storage=str(tmp_path / "store"),
        cache=str(tmp_path / "cache"),
        checkpoint_epochs=[],
        checkpoint_interval=1e6,
        splits={key: split.digest for key, split in splits.items()},
        contents=task_digests(splits),
        weights_sha256={},
        versions={},
    )
    overwrite(folder, ONE)
    trial: Any = object.__new__(SaliencyCutTrainable)
    trial.setup({"number": 0, "params": {}, "attempt": 1}, spec.model_dump())
    failure = trial.step()["failure"]
    assert failure.kind == "ChangedDataError"
    assert f"the images of task seed42 in {folder} hold something else than the driver's" in failure.message
