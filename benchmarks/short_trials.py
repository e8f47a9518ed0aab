"""Trials of bench_overhead.py: everything of a real one but the training, which is a short sleep.

A module of its own, so that Ray's workers import it instead of unpickling it.
"""

from __future__ import annotations

import time

import torch

from sctune.config import Task, TrialConfig
from sctune.data.split import selection_subset, split_for
from sctune.methods.deviation.method import DeviationMethod
from sctune.report import OBJECTIVE, EpochReport
from sctune.train.trainer import Trainer
from sctune.trial.checkpoint import TrialStore
from sctune.trial.trainable import SaliencyCutTrainable

EPOCH_SECONDS = 0.02

SELECTION_COUNT: dict[str, int] = {}
"""Selection images by task, counted once per worker: no trial of the benchmark varies them."""


class ShortTrainer(Trainer):
    """Built and saved like a real trainer, optimiser moments included; an epoch is a sleep."""

    def run_epoch(self) -> EpochReport:
        self.epoch += 1
        return short_epoch(self.epoch, self.config, self.task, len(self.selection.paths))

    def fill_moments(self) -> None:
        assert isinstance(self.method, DeviationMethod)
        optimiser = self.method.optimiser
        for group in optimiser.param_groups:
            for weight in group["params"]:
                moments = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(weight)}
                optimiser.state[weight] = moments | {"exp_avg_sq": torch.zeros_like(weight)}


class EmptyTrainer:
    """Nothing to build and nothing to save: what is left is the driver, Ray and the tracking."""

    def __init__(self, config: TrialConfig, task: Task) -> None:
        self.config, self.task, self.epoch = config, task, 0
        if task.key not in SELECTION_COUNT:
            split = split_for(config.for_task(task), task)
            files = selection_subset(split, config.data.selection_limit, config.data.partition_seed)
            SELECTION_COUNT[task.key] = len(files)

    def run_epoch(self) -> EpochReport:
        self.epoch += 1
        return short_epoch(self.epoch, self.config, self.task, SELECTION_COUNT[self.task.key])

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        return {"model/weight": torch.zeros(1)}, {"epoch": self.epoch}


def short_epoch(epoch: int, config: TrialConfig, task: Task, images: int) -> EpochReport:
    """A report as large as a real one; its `seconds` are what counts as training."""
    started = time.perf_counter()
    time.sleep(EPOCH_SECONDS)
    names = ("loss", "loss_normal", "loss_anomaly", "gradient_norm", "pasted_fraction", "flat_maps", "lr")
    value = 0.5 + 0.4 * config.augment.threshold + 0.001 * epoch
    metrics = {**dict.fromkeys(names, 0.5), "selection_ap": value, OBJECTIVE: value}
    scores = {task.key: [0.123456789 * row for row in range(images)]}
    metrics["seconds"] = time.perf_counter() - started
    return EpochReport(epoch, config.budget.epochs, metrics, scores)


class BuiltTrial(SaliencyCutTrainable):
    """A trial whose data, model and checkpoints are real."""

    def _build(self) -> None:
        super()._build()
        for trainer in self.trainers:
            # the same object with other epochs
            trainer.__class__ = ShortTrainer
            assert isinstance(trainer, ShortTrainer)
            trainer.fill_moments()


class EmptyTrial(SaliencyCutTrainable):
    """A trial without data and model."""

    def _build(self) -> None:
        config = TrialConfig.load(self.spec.config).override(self.params)
        self.store = TrialStore(self.spec.storage, self.number)
        # as much of a trainer as a trial asks for
        self.trainers = [EmptyTrainer(config, task) for task in self.spec.tasks]  # type: ignore[misc]
