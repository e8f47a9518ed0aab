"""What an epoch tells of its card, and how much of one a trial's process may take."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from sctune.config import Task, TrialConfig
from sctune.report import EpochReport, merge_reports
from sctune.train import trainer as trainers
from sctune.train.card import CudaCard, card_of, own_card, watched
from sctune.train.trainer import Trainer
from sctune.trial.building import TrialSpec
from sctune.trial.trainable import SaliencyCutTrainable
from tests.cards import SimulatedCard

GIB = 2**30


@pytest.fixture
def card(tmp_path: Path) -> SimulatedCard:
    return SimulatedCard(tmp_path, 8 * GIB)


def test_an_epoch_tells_its_own_peak(tiny: TrialConfig, card: SimulatedCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers, "card_of", lambda device: card)
    trainer = Trainer(tiny)
    sizes, run = [3 * GIB, GIB], trainer.method.run_epoch

    def run_epoch(epoch: int, should_stop: Any) -> dict[str, float]:
        card.allocate(sizes[epoch])
        try:
            return run(epoch, should_stop)
        finally:
            card.free()

    monkeypatch.setattr(trainer.method, "run_epoch", run_epoch)
    told = [report.metrics for report in trainer.fit()]
    assert [one["gpu_reserved_mb"] for one in told] == [3072, 1024]
    assert [one["gpu_memory_mb"] for one in told] == [3072, 1024]


def test_without_a_card_nothing_is_told_of_one(tiny: TrialConfig) -> None:
    metrics = Trainer(tiny).run_epoch().metrics
    assert not [name for name in metrics if name.startswith("gpu")] and metrics["seconds"] > 0
    assert card_of(torch.device("cpu")) is None


class Busy:
    """A card that is asked how busy it is; the last answer is the end."""

    def __init__(self, answers: list[float | None]) -> None:
        self.answers, self.asked, self.through = answers, 0, threading.Event()

    def utilisation(self) -> float | None:
        self.asked += 1
        answer = self.answers.pop(0)
        if not self.answers:
            self.through.set()
            # later looks find what the last one found
            self.answers = [answer]
        return answer


def usage_of(answers: list[float | None]) -> tuple[float | None, int]:
    card: Any = Busy(answers)
    with watched(card, every_s=0.001) as usage:
        assert card.through.wait(20)
    return usage.mean, card.asked


def test_how_busy_a_card_was() -> None:
    # nobody tells: it is asked once
    assert usage_of([None]) == (None, 1)
    # and no more when somebody has stopped telling
    assert usage_of([20.0, 60.0, 40.0, None]) == (40.0, 4)
    with watched(None) as usage:
        pass
    assert usage.mean is None


def test_the_memory_of_a_process_is_that_of_its_largest_task() -> None:
    def report(memory: float, seconds: float) -> EpochReport:
        return EpochReport(1, 1, {"selection_auroc": 0.5, "gpu_reserved_mb": memory, "seconds": seconds}, {})

    merged = merge_reports({"a": report(100.0, 1.0), "b": report(700.0, 2.0)}).metrics
    assert (merged["gpu_reserved_mb"], merged["seconds"]) == (700.0, 3.0)


def limited(tmp_path: Path, share: float | None, context: int | None = None) -> list[int | None]:
    """Limits that a trial of this share sets before it is built."""
    limits: list[int | None] = []

    class Watched(SimulatedCard):
        def limit(self, size: int | None) -> None:
            limits.append(size)

    class OnCard(SaliencyCutTrainable):
        def _card(self) -> Any:
            return Watched(tmp_path, 8 * GIB)

        def _build(self, course: Any) -> Any:
            raise ValueError("far enough")

    spec = TrialSpec(
        config=TrialConfig().model_dump(),
        tasks=[Task()],
        storage=str(tmp_path),
        cache=str(tmp_path / "cache"),
        checkpoint_epochs=[],
        checkpoint_interval=60.0,
        splits={},
        weights_sha256={},
        versions={},
    )
    if context is not None:
        spec = spec.model_copy(update={"gpu_context": context})
    config: dict[str, Any] = {"number": 0, "params": {}, "attempt": 1}
    if share is not None:
        config["resources"] = {"cpus": 1.0, "gpus": share}
    trial: Any = object.__new__(OnCard)
    trial.setup(config, spec.model_dump())
    assert trial.step()["failure"].message == "far enough"
    # the next trial of the worker has a card of its own
    trial.reset_config(config | {"resources": {"cpus": 1.0, "gpus": 1.0}})
    trial.step()
    return limits


def test_a_trial_gets_its_share_of_a_card_and_no_more(tmp_path: Path) -> None:
    # the context is a part of the share
    assert limited(tmp_path, 0.5, context=GIB) == [3 * GIB, None]
    assert limited(tmp_path, 0.25) == [2 * GIB - 768 * 2**20, None]
    # without a GPU no card is asked
    assert limited(tmp_path, 0.0) == [None]
    assert limited(tmp_path, None) == [None]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_limit_on_a_real_card() -> None:
    card = own_card()
    assert isinstance(card, CudaCard) and card.total > GIB // 2 and card.name
    torch.cuda.empty_cache()
    try:
        card.limit(256 * 2**20)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(512 * 2**20, dtype=torch.uint8, device="cuda")
        card.begin()
        held = torch.empty(128 * 2**20, dtype=torch.uint8, device="cuda")
        assert card.allocated() >= held.nbytes and card.reserved() >= held.nbytes
        card.limit(None)
        torch.empty(512 * 2**20, dtype=torch.uint8, device="cuda")
    finally:
        card.limit(None)
    # CUDA's context is there, and is no gigabytes
    assert card.beside() > 0
    percent = card.utilisation()
    assert percent is None or 0 <= percent <= 100
