"""What trainings of one process keep together has a bound, and changes no number."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from sctune.config import TrialConfig
from sctune.methods import room
from sctune.methods.room import Room, Share
from sctune.train.trainer import Trainer


def test_holders_share_a_room_and_give_back_what_they_had() -> None:
    whole = Room(100)
    first, second = Share(80, whole), Share(80, whole)
    assert first.take(50) and not first.take(31), "no more than it is allowed"
    assert (first.left, second.left) == (30, 50)
    assert second.take(50) and not first.take(1), "no more than there is"
    del first
    gc.collect()
    assert second.left == 30 and second.take(30) and whole.held == 80


def test_who_finds_no_room() -> None:
    whole = Room(100)
    assert whole.share_without(5) == 0.0, "nothing is kept"
    share = Share(100, whole)
    assert share.take(40) and whole.share_without(1) == 0.0
    # of the second holder's 40 bytes all find room, of the third's 20
    assert whole.share_without(2) == pytest.approx(0) and whole.share_without(4) == pytest.approx(1.5 / 4)
    with whole.shut():
        assert share.left == 0 and not share.take(1) and whole.share_without(4) == pytest.approx(3 / 4)
    assert share.take(60)


def test_one_holder_may_be_allowed_more_than_there_was() -> None:
    whole = Room(100)
    large = Share(400, whole)
    assert large.take(400) and whole.most == 400 and not Share(1, whole).take(1)


@pytest.mark.parametrize("name", ["deviation", "kdad", "mlep"])
def test_tasks_of_one_process_train_alike_with_room_and_without(
    name: str, tiny: TrialConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # frozen blocks, whose maps are kept; the source of kdad is frozen whole
    fields = {"method.total_updates": 2} if name == "kdad" else {"model.freeze": 6}
    config = tiny.override({"method.name": name, **fields})

    def scored() -> tuple[list[np.ndarray], list[int], Room]:
        whole = Room(0)
        # as a process that has no more than what one method asks for
        monkeypatch.setattr(whole, "allow", lambda most: None)
        whole.most = most
        monkeypatch.setattr(room, "HOST", whole)
        found, held = [], []
        for seed in (1, 2):
            trainer = Trainer(config.override({"seed": seed}))
            list(trainer.fit())
            found.append(trainer.method.scorer()(trainer.selection.images))
            held.append(whole.held)
            alive.append(trainer)
        return found, held, whole

    alive: list[Trainer] = []
    monkeypatch.setattr("sctune.methods.kdad.kept.SPARE", 0)
    most = 2**30
    expected, held, whole = scored()
    assert 0 < held[0] < held[1]
    alive.clear()
    gc.collect()
    assert whole.held == 0, "what a trainer kept is free when it is gone"
    # the first one finds room, the second none
    most = held[0]
    again, fewer, _ = scored()
    assert fewer == [held[0], held[0]]
    for one, other in zip(expected, again, strict=True):
        np.testing.assert_array_equal(one, other)
