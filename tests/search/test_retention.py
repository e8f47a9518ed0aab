"""Checkpoints go only when the record holds why, and never those of another driver's study."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sctune.search.reconcile import stored_trials
from sctune.search.run import retention
from sctune.search.run.retention import CheckpointKeeper
from sctune.tracking.callback import PastTrial
from sctune.trial.checkpoint import TrialStore


@pytest.fixture
def storage(tmp_path: Path) -> str:
    for number in range(3):
        TrialStore(str(tmp_path), number).save(1, 1, {"t": ({"w": torch.zeros(9)}, {})})
    return str(tmp_path)


def kept(storage: str) -> list[int]:
    return [number for number in range(3) if TrialStore(storage, number).names()]


def test_a_losers_checkpoints_wait_for_the_record(storage: str) -> None:
    waiting: list[Callable[[], None]] = []
    keeper = CheckpointKeeper(storage, 1, [], waiting.append)
    keeper.on_end(0, "PRUNED", 0.9, {})
    keeper.on_end(1, "COMPLETE", 0.8, {})
    keeper.on_end(2, "COMPLETE", 0.7, {})
    assert kept(storage) == [0, 1, 2]
    for call in waiting:
        call()
    keeper.close()
    assert kept(storage) == [1]


def test_a_driver_without_its_study_removes_nothing(storage: str) -> None:
    taken = False
    keeper = CheckpointKeeper(storage, 1, [], taken=lambda: taken)
    keeper.on_end(0, "FAIL", None, {})
    keeper.close()
    assert kept(storage) == [1, 2]
    taken = True
    keeper = CheckpointKeeper(storage, 1, [], taken=lambda: taken)
    keeper.kept = [(0.8, -1), (0.7, -2)]
    keeper.on_end(1, "FAIL", None, {})
    keeper.drop_worst()
    keeper.close()
    assert kept(storage) == [1, 2]


def test_what_ends_after_the_close_is_left_to_the_next_launch(storage: str) -> None:
    keeper = CheckpointKeeper(storage, 1, [])
    keeper.close()
    keeper.on_end(0, "PRUNED", 0.5, {})
    assert kept(storage) == [0, 1, 2]


def test_a_storage_that_hangs_is_not_waited_for(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "CLOSE_S", 0.1)
    hanging = threading.Event()
    monkeypatch.setattr(TrialStore, "clear", lambda _: hanging.wait(20))
    keeper = CheckpointKeeper(storage, 1, [])
    for number in range(3):
        keeper.on_end(number, "PRUNED", 0.5, {})
    keeper.close()
    hanging.set()
    assert kept(storage) == [0, 1, 2]


def test_what_goes_does_not_hang_on_how_it_is_told(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    half = f"{storage}/trials/00001/.epoch-0002-attempt-01-launch-01.ab12"
    Path(half).mkdir()
    compare = stored_trials.compare_checkpoints
    monkeypatch.setattr(
        stored_trials,
        "compare_checkpoints",
        lambda *args, **named: [dataclasses.replace(one, text="other words") for one in compare(*args, **named)],
    )
    trials = [PastTrial(0, {}, 1, 0, {}, "PRUNED", 1, 0.5), PastTrial(1, {}, 1, 0, {}, "COMPLETE", 1, 0.6)]
    assert stored_trials.remove_strays(storage, trials, keep_best=1) == 3
    assert kept(storage) == [1]
    assert not Path(storage, "trials/00000").exists() and not Path(half).exists()
