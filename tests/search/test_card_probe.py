"""What a class of configurations takes of a card is tried on noise, with random weights, by every method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sctune.config import TrialConfig
from sctune.errors import ClusterError
from sctune.methods.room import ON_GPU
from sctune.search.run import card_probe
from sctune.search.run.card_probe import TOO_SMALL, asked_of, look, try_class
from sctune.train.trainer import Trainer
from sctune.trial.remote import FAILED
from tests.cards import CONTEXT, SimulatedCard
from tests.methods.test_registry_contract import BUILT_IN, OWN

GIB = 2**30


def asked(tiny: TrialConfig, name: str = "deviation", tasks: int = 1, images: int = 10, **more: Any) -> dict[str, Any]:
    fields = {"method.name": name, "budget.iterations": 1, **OWN.get(name, {}), **more}
    return asked_of(tiny.override(fields), tasks, images, "auroc", 1)


@pytest.fixture
def card(tmp_path: Path) -> SimulatedCard:
    return SimulatedCard(tmp_path, 8 * GIB)


@pytest.fixture
def takes(card: SimulatedCard, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes that each step takes of the card."""
    sizes: list[int] = []
    step = Trainer.time_step

    def time_step(trainer: Trainer) -> tuple[float, int]:
        card.free()
        for size in sizes:
            card.allocate(size)
        return step(trainer)

    monkeypatch.setattr(Trainer, "time_step", time_step)
    yield sizes
    card.free()


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_method_is_tried_without_data_and_weights(
    tiny: TrialConfig, card: SimulatedCard, takes: list[int], name: str
) -> None:
    takes.append(GIB)
    # data that are not there, and a known class that noise does not have
    nowhere = {"data.source": "/nowhere", "data.category": "bottle", "data.group": "x(.)", "data.n_anomalies": 10}
    found = try_class(asked(tiny, name, **nowhere), card)
    assert FAILED not in found, found
    assert (found["peak"], found["context"]) == (GIB, CONTEXT)
    assert found["epoch"] >= found["step"] > 0


def test_the_other_tasks_of_a_trial_keep_their_states(
    tiny: TrialConfig, card: SimulatedCard, takes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    takes.append(GIB)
    state = 1000 * 4
    monkeypatch.setattr(Trainer, "state", lambda self: ({"w": torch.zeros(1000)}, {}))
    assert try_class(asked(tiny, tasks=4), card)["peak"] == GIB + 3 * state


def test_kept_maps_grow_with_the_images_up_to_their_room(
    tiny: TrialConfig, card: SimulatedCard, takes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    takes.append(GIB)
    # 144 images of noise, a part of them set apart as the test pool
    monkeypatch.setattr(ON_GPU, "held", 1000)
    few = try_class(asked(tiny), card)["peak"] - GIB
    many = try_class(asked(tiny, images=100_000), card)["peak"] - GIB
    most = try_class(asked(tiny, images=10**12), card)["peak"] - GIB
    assert few == 0 and 1000 * (100_000 / 144 - 1) <= many < 1000 * 100_000 and most == ON_GPU.most - 1000


def test_a_class_that_does_not_fit_says_so(tiny: TrialConfig, card: SimulatedCard, takes: list[int]) -> None:
    takes += [6 * GIB, 2 * GIB]
    assert try_class(asked(tiny), card)[TOO_SMALL] is True


def test_what_is_in_use_by_others_is_not_taken_for_a_context(
    tiny: TrialConfig, card: SimulatedCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "beside", lambda: 5 * GIB)
    assert try_class(asked(tiny), card)["context"] == 2 * GIB


def test_another_failure_is_told(tiny: TrialConfig, card: SimulatedCard, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("no luck")

    monkeypatch.setattr(card_probe, "timed", broken)
    assert try_class(asked(tiny), card)[FAILED] == {"kind": "ValueError", "message": "no luck"}


def test_a_look(card: SimulatedCard) -> None:
    found = look(card)
    assert (found["name"], found["total"]) == ("Simulated", 8 * GIB)
    if not torch.cuda.is_available():
        assert look()[FAILED]["kind"] == ClusterError.__name__
