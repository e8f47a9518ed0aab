"""A trial as its worker runs it: what a later attempt tells of the epochs before its checkpoint."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sctune.config import Task, TrialConfig
from sctune.data.split import split_for
from sctune.errors import NodeLeavingError, StoppedError
from sctune.trial import trainable
from sctune.trial.building import TrialSpec
from sctune.trial.checkpoint import TrialStore
from sctune.trial.trainable import SaliencyCutTrainable

EPOCHS = 4


def make_trial(tiny: TrialConfig, root: Path, attempt: int, launch: int = 1, first: int = 1) -> Any:
    """Trial 5 with a checkpoint after its third epoch only."""
    config = tiny.override({"budget.epochs": EPOCHS})
    task = Task(source=config.data.source, seed=config.seed)
    spec = TrialSpec(
        config=config.model_dump(),
        tasks=[task],
        storage=str(root / "store"),
        cache=str(root / "cache"),
        checkpoint_epochs=[3],
        checkpoint_interval=1e6,
        splits={task.key: split_for(config.for_task(task), task).digest},
        weights_sha256={},
        versions={},
    )
    trial: Any = object.__new__(SaliencyCutTrainable)
    config_of_trial = {"number": 5, "params": {}, "attempt": attempt, "launch": launch, "first_launch": first}
    trial.setup(config_of_trial, spec.model_dump())
    return trial


def test_an_attempt_tells_again_what_its_driver_may_not_have_heard(tiny: TrialConfig, tmp_path: Path) -> None:
    undisturbed = make_trial(tiny, tmp_path / "whole", 1)
    expected = [undisturbed.step() for _ in range(EPOCHS)]
    first = make_trial(tiny, tmp_path, 1)
    for _ in range(3):
        first.step()
    # the database was away all the time, then the driver was killed
    second = make_trial(tiny, tmp_path, 2)
    told = [second.step() for _ in range(EPOCHS)]
    assert [row["report"].epoch for row in told] == [1, 2, 3, 4]
    assert [row["report"].value for row in told] == [row["report"].value for row in expected]
    assert [row["done"] for row in told] == [False, False, False, True]
    # a rule may stop the trial at any of them: each is told with its scores
    assert [row["report"].scores for row in told] == [row["report"].scores for row in expected]
    assert all(row["report"].scores for row in told)


def test_a_first_attempt_takes_nothing_from_a_namesake(tiny: TrialConfig, tmp_path: Path) -> None:
    stale = TrialStore(str(tmp_path / "store"), 5)
    stale.save(3, 1, {"other": ({}, {"epoch": 3})})
    assert make_trial(tiny, tmp_path, 1).step()["report"].epoch == 1
    assert not stale.names()


def test_the_worker_of_a_driver_that_was_cut_off_disturbs_no_namesake(tiny: TrialConfig, tmp_path: Path) -> None:
    """Both call their trial "5, attempt 1": the first driver could not record it before the second came."""
    old, new = make_trial(tiny, tmp_path, 1), make_trial(tiny, tmp_path, 1, launch=2, first=2)
    for _ in range(3):
        new.step()
    for _ in range(EPOCHS):
        old.step()
    again = make_trial(tiny, tmp_path, 2, launch=2, first=2)
    assert [again.step()["report"].epoch for _ in range(EPOCHS)] == [1, 2, 3, 4]
    # one epoch was trained: the checkpoint of its own third was still there
    assert [(name.epoch, name.launch, name.attempt) for name in again.store.names()] == [(4, 2, 2)]


def test_a_trial_of_an_earlier_launch_goes_on_from_its_checkpoint(tiny: TrialConfig, tmp_path: Path) -> None:
    first = make_trial(tiny, tmp_path, 1)
    for _ in range(3):
        first.step()
    again = make_trial(tiny, tmp_path, 2, launch=2)
    assert again.step()["report"].epoch == 1 and again.trainers[0].epoch == 3


def broken(store: TrialStore, times: int, code: int = errno.EIO) -> Callable[..., Any]:
    """A `save` that fails so many times."""
    save, tries = store.save, []

    def failing(*arguments: Any) -> Any:
        tries.append(1)
        if len(tries) <= times:
            raise OSError(code, "the disk says no")
        return save(*arguments)

    return failing


def test_a_trial_waits_with_its_model_for_a_storage_that_comes_back(
    tiny: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "SAVE_PAUSE_S", 0.01)
    trial = make_trial(tiny, tmp_path, 1)
    trial.step()
    # the rung's checkpoint is given up, the last one is not
    monkeypatch.setattr(trial.store, "save", broken(trial.store, 4))
    told = [trial.step() for _ in range(EPOCHS - 1)]
    assert [row["report"].epoch for row in told] == [2, 3, 4]
    assert told[-1]["done"] and "failure" not in told[-1]
    assert [name.epoch for name in trial.store.names()] == [4]


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, "disk full"), (errno.EIO, "storage away")])
def test_a_storage_that_stays_away_is_told_and_not_the_trials_fault(
    code: int, kind: str, tiny: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "LAST_SAVE_S", 0.0)
    trial = make_trial(tiny, tmp_path, 1)
    for _ in range(EPOCHS - 1):
        trial.step()
    monkeypatch.setattr(trial.store, "save", broken(trial.store, 9, code))
    told = trial.step()
    assert told["failure"].kind == kind
    assert "the disk says no" in told["failure"].message
    # the next attempt repeats one epoch
    again = make_trial(tiny, tmp_path, 2)
    assert [again.step()["report"].epoch for _ in range(EPOCHS)] == [1, 2, 3, 4]
    assert [name.epoch for name in again.store.names()] == [4]


def test_a_trial_that_waits_for_its_storage_ends_with_the_launch(
    tiny: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(tiny, tmp_path, 1)
    for _ in range(EPOCHS - 1):
        trial.step()
    monkeypatch.setattr(trial.store, "save", broken(trial.store, 9))
    monkeypatch.setattr(trial, "_wait", lambda _: (_ for _ in ()).throw(StoppedError("stopped")))
    told = trial.step()
    assert told["done"] and "report" not in told and "failure" not in told


def moved(tiny: TrialConfig, tmp_path: Path) -> TrialConfig:
    """The same images in a folder that the test may break."""
    return tiny.override({"data.source": str(shutil.copytree(tiny.data.source, tmp_path / "mount"))})


def test_what_a_node_lacks_is_told_as_the_places_fault(
    tiny: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the cache is the driver's then
    monkeypatch.delenv("SCTUNE_HOME")
    config = moved(tiny, tmp_path)
    trial = make_trial(config, tmp_path, 1)
    (tmp_path / "mount").rename(tmp_path / "away")
    failure = trial.step()["failure"]
    assert (failure.kind, failure.origin.node) == ("PlaceError", "")
    assert str(tmp_path / "mount") in failure.message
    (tmp_path / "away").rename(tmp_path / "mount")
    # a cache that takes nothing
    (tmp_path / "cache").write_text("no folder")
    assert make_trial(config, tmp_path, 1).step()["failure"].kind == "PlaceError"
    (tmp_path / "cache").unlink()
    assert make_trial(config, tmp_path, 1).step()["report"].epoch == 1


def test_an_image_that_is_corrupt_everywhere_is_no_fault_of_the_place(tiny: TrialConfig, tmp_path: Path) -> None:
    config = moved(tiny, tmp_path)
    trial = make_trial(config, tmp_path, 1)
    task = Task(source=config.data.source, seed=config.seed)
    broken_image = Path(config.data.source) / split_for(config.for_task(task), task).development[0].path
    broken_image.write_bytes(b"no image")
    assert trial.step()["failure"].kind == "CorruptImageError"


def test_trouble_with_a_file_in_mid_training_is_the_places_fault(
    tiny: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(tiny, tmp_path, 1)
    trial.step()
    stale = OSError(errno.ESTALE, "Stale file handle", "/mount/images")
    monkeypatch.setattr(trial.trainers[0], "run_epoch", lambda: (_ for _ in ()).throw(stale))
    failure = trial.step()["failure"]
    assert failure.kind == "PlaceError" and "Stale file handle" in failure.message


def test_a_trial_keeps_its_epoch_when_its_node_is_taken_away(tiny: TrialConfig, tmp_path: Path) -> None:
    """No checkpoint was due: the first one is that of epoch 3."""
    undisturbed = make_trial(tiny, tmp_path / "whole", 1)
    expected = [undisturbed.step()["report"].value for _ in range(EPOCHS)]
    first = make_trial(tiny, tmp_path, 1)
    first.step()
    first.step()
    store = TrialStore(str(tmp_path / "store"), 5)
    assert store.names() == []
    first._is_leaving = lambda: True
    with pytest.raises(NodeLeavingError, match="the node is being drained"):
        first.step()
    assert [name.epoch for name in store.names()] == [2]
    second = make_trial(tiny, tmp_path, 2)
    trained: list[int] = []
    build = second._build

    def counted(course: Any) -> Any:
        trainers = build(course)
        for trainer in trainers:
            run = trainer.run_epoch
            trainer.run_epoch = lambda run=run: trained.append(1) or run()
        return trainers

    second._build = counted
    assert [second.step()["report"].value for _ in range(EPOCHS)] == expected
    assert len(trained) == EPOCHS - 2


def test_nothing_begins_on_a_node_that_is_taken_away(tiny: TrialConfig, tmp_path: Path) -> None:
    trial = make_trial(tiny, tmp_path, 1)
    trial._is_leaving = lambda: True
    with pytest.raises(NodeLeavingError):
        trial.step()
    assert not (tmp_path / "store").exists()
