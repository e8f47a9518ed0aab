"""Checkpoints: whole or not at all, one in reserve, damaged ones passed over, nothing outside the folder read."""

import json

import pytest
import torch

from sctune.errors import CheckpointError
from sctune.report import OBJECTIVE, EpochReport
from sctune.trial.checkpoint import CheckpointName, TrialStore
from sctune.trial.storage import open_storage


def state(value):
    return {"task": ({"model/w": torch.full((3,), float(value))}, {"epoch": value})}


def folders(store):
    return [name.folder for name in store.names()]


def test_what_is_saved_is_loaded(tmp_path):
    store = TrialStore(str(tmp_path), 7)
    assert store.load_latest() is None
    report = EpochReport(1, 2, {OBJECTIVE: 0.5}, {"task": [0.1]}).to_dict()
    store.save(1, 1, state(1), report)
    loaded = store.load_latest()
    tensors, meta = loaded.tasks["task"]
    assert torch.equal(tensors["model/w"], torch.ones(3))
    assert meta == {"epoch": 1}
    assert loaded.report == report
    assert store.root == f"{tmp_path}/trials/00007"


def test_one_task_of_many_is_read_alone(tmp_path):
    store = TrialStore(str(tmp_path), 0)
    store.save(1, 1, {"one": state(1)["task"], "two": state(2)["task"]})
    (tmp_path / "trials/00000/epoch-0001-attempt-01/task-0.safetensors").unlink()
    loaded = store.load_latest(only="two")
    assert list(loaded.tasks) == ["two"] and torch.equal(loaded.tasks["two"][0]["model/w"], torch.full((3,), 2.0))
    assert store.load_latest() is None and store.load_latest(only="one") is None


def test_one_stays_in_reserve_until_the_trial_is_over(tmp_path):
    store = TrialStore(str(tmp_path), 0)
    for epoch in (1, 2, 3):
        store.save(epoch, 1, state(epoch))
    assert folders(store) == ["epoch-0002-attempt-01", "epoch-0003-attempt-01"]
    store.save(4, 1, state(4), last=True)
    assert [path.name for path in (tmp_path / "trials/00000").iterdir()] == ["epoch-0004-attempt-01"]


def test_an_earlier_attempt_never_removes_a_later_one(tmp_path):
    store = TrialStore(str(tmp_path), 0)
    for epoch in (2, 3, 4):
        store.save(epoch, 2, state(epoch))
    store.save(9, 1, state(9))
    assert {"epoch-0003-attempt-02", "epoch-0004-attempt-02"} <= set(folders(store))


def test_two_drivers_may_have_a_trial_of_one_number_and_attempt(tmp_path):
    """The first was cut off from its database before it recorded the trial; its worker goes on writing."""
    store = TrialStore(str(tmp_path), 7)
    store.save(3, 1, state(3), launch=1)
    store.clear_before(2)
    assert store.names() == []
    store.save(1, 1, state(1), launch=2)
    store.save(4, 1, state(4), launch=1)
    assert folders(store) == ["epoch-0001-attempt-01-launch-02", "epoch-0004-attempt-01-launch-01"]
    assert store.load_latest(first_launch=2).tasks["task"][1] == {"epoch": 1}
    # a worker of the first driver that starts only now, and writes
    store.clear_before(1)
    for epoch in (1, 2, 3):
        store.save(epoch, 1, state(epoch), launch=1)
    assert "epoch-0001-attempt-01-launch-02" in folders(store)
    assert store.load_latest(first_launch=2).tasks["task"][1] == {"epoch": 1}
    # the last one of both is the later driver's, and the end of its trial removes the other's
    store.save(4, 1, state(40), launch=1)
    store.save(4, 1, state(4), last=True, launch=2)
    assert store.load_latest().tasks["task"][1] == {"epoch": 4}
    assert folders(store) == ["epoch-0004-attempt-01-launch-02"]


def test_checkpoints_of_earlier_versions_are_found_and_give_way(tmp_path):
    store = TrialStore(str(tmp_path), 7)
    store.save(3, 4, state(3))
    (tmp_path / "trials/00007/.epoch-0004-attempt-04.ab12").mkdir()
    assert folders(store) == ["epoch-0003-attempt-04"]
    assert store.load_latest().tasks["task"][1] == {"epoch": 3}
    store.save(4, 1, state(4), last=True, launch=9)
    assert [path.name for path in (tmp_path / "trials/00007").iterdir()] == ["epoch-0004-attempt-01-launch-09"]


@pytest.mark.parametrize("file", ["task-0.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_checkpoint_costs_its_epochs_only(tmp_path, file, damage):
    store = TrialStore(str(tmp_path), 0)
    for epoch in (1, 2):
        store.save(epoch, 1, state(epoch))
    path = tmp_path / "trials/00000/epoch-0002-attempt-01" / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\xff" * len(content))
    with pytest.raises(CheckpointError, match="epoch-0002"):
        store.load(CheckpointName(2, 1))
    assert store.load_latest().tasks["task"][1] == {"epoch": 1}


def test_a_folder_without_its_manifest_is_no_checkpoint(tmp_path):
    store = TrialStore(str(tmp_path), 0)
    store.save(1, 1, state(1))
    store.save(2, 1, state(2))
    (tmp_path / "trials/00000/epoch-0002-attempt-01/checkpoint.json").unlink()
    assert folders(store) == ["epoch-0001-attempt-01"]


def change_manifest(tmp_path, old, new):
    path = tmp_path / "trials/00000/epoch-0001-attempt-01/checkpoint.json"
    manifest = json.loads(path.read_text())
    # as an earlier sctune wrote it, without a digest of its own
    del manifest["sha256"]
    assert old in json.dumps(manifest)
    path.write_text(json.dumps(manifest).replace(old, new))


def test_a_manifest_cannot_point_outside(tmp_path):
    store = TrialStore(str(tmp_path), 0)
    store.save(1, 1, state(1))
    change_manifest(tmp_path, json.dumps("task-0.safetensors"), json.dumps("../../secret"))
    with pytest.raises(CheckpointError, match="leaves the checkpoint"):
        store.load(CheckpointName(1, 1))


def test_a_newer_format_says_so(tmp_path):
    store = TrialStore(str(tmp_path), 0)
    store.save(1, 1, state(1))
    change_manifest(tmp_path, '"format_version": 1', '"format_version": 99')
    with pytest.raises(CheckpointError, match="update sctune"):
        store.load(CheckpointName(1, 1))


@pytest.mark.parametrize("storage", ["relative/folder", "nosuch://bucket/x"])
def test_storage_that_cannot_be_used_is_named(storage):
    with pytest.raises(CheckpointError, match="--storage-path"):
        open_storage(storage)
