"""Trials of bench_overhead.py: everything of a real one but the training, which is a short sleep.

A module of its own, so that Ray's workers import it instead of unpickling it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sctune.config import TrialConfig
from sctune.report import OBJECTIVE, EpochReport
from sctune.search.searcher import StudySearcher
from sctune.train.trainer import Trainer
from sctune.trial.checkpoint import TrialStore
from sctune.trial.trainable import SaliencyCutTrainable

EPOCH_SECONDS = 0.02


class ShortTrainer(Trainer):
    """Built and saved like a real trainer, optimiser moments included; an epoch is a sleep."""

    def run_epoch(self) -> EpochReport:
        self.epoch += 1
        return short_epoch(self.epoch, self.config, self.task.key)

    def fill_moments(self) -> None:
        for group in self.optimiser.param_groups:
            for weight in group["params"]:
                moments = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(weight)}
                self.optimiser.state[weight] = moments | {"exp_avg_sq": torch.zeros_like(weight)}


class EmptyTrainer:
    """Nothing to build and nothing to save: what is left is the driver, Ray and the tracking."""

    def __init__(self, config: TrialConfig, task: Any) -> None:
        self.config, self.task, self.epoch = config, task, 0

    def run_epoch(self) -> EpochReport:
        self.epoch += 1
        return short_epoch(self.epoch, self.config, self.task.key)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        return {"model/weight": torch.zeros(1)}, {"epoch": self.epoch}


def short_epoch(epoch: int, config: TrialConfig, key: str) -> EpochReport:
    """A report as large as a real one; `seconds` is the time that counts as training."""
    started = time.perf_counter()
    time.sleep(EPOCH_SECONDS)
    names = ("loss", "loss_normal", "loss_anomaly", "gradient_norm", "pasted_fraction", "flat_maps", "lr")
    value = 0.5 + 0.4 * config.augment.threshold + 0.001 * epoch
    metrics = {**dict.fromkeys(names, 0.5), "selection_ap": value, OBJECTIVE: value}
    scores = {key: [0.123456789 * row for row in range(2 * (config.data.selection_limit or 100))]}
    metrics["seconds"] = time.perf_counter() - started
    return EpochReport(epoch, config.budget.epochs, metrics, scores)


class BuiltTrial(SaliencyCutTrainable):
    """A trial whose data, model and checkpoints are real."""

    def _build(self) -> None:
        super()._build()
        for trainer in self.trainers:
            # same object, other epochs
            trainer.__class__ = ShortTrainer
            trainer.fill_moments()


class EmptyTrial(SaliencyCutTrainable):
    """A trial without data and model."""

    def _build(self) -> None:
        config = TrialConfig.load(self.spec.config).override(self.params)
        self.store = TrialStore(self.spec.storage, self.number)
        self.trainers = [EmptyTrainer(config, task) for task in self.spec.tasks]


class Clock:
    """Seconds of every call, and when the first was made."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.first: float | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        started = time.perf_counter()
        self.first = self.first or started
        try:
            yield
        finally:
            self.seconds.append(time.perf_counter() - started)


class TimedObserver:
    """Passes everything on to an observer of the searcher and times it."""

    def __init__(self, observer: Any) -> None:
        self.observer = observer
        self.all, self.reports = Clock(), Clock()

    def on_start(self, number: int, params: dict[str, Any], attempt: int) -> None:
        with self.all():
            self.observer.on_start(number, params, attempt)

    def on_report(self, number: int, report: dict[str, Any], time: int) -> None:
        with self.all(), self.reports():
            self.observer.on_report(number, report, time)

    def on_end(self, number: int, state: str, value: float | None, info: dict[str, Any]) -> None:
        with self.all():
            self.observer.on_end(number, state, value, info)


class TimedSearcher(StudySearcher):
    """Times the searcher, its observers included."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        with self.clock("suggest"):
            return super().suggest(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        with self.clock("result"):
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        with self.clock("complete"):
            super().on_trial_complete(trial_id, result, error)

    def clock(self, name: str) -> Any:
        clocks: dict[str, Clock] = self.__dict__.setdefault("clocks", {})
        return clocks.setdefault(name, Clock())()
