"""The epoch loop of one configuration on one task, whatever its method (paper section 4.2).

Knows no Ray, Optuna or MLflow, and no single method: a generator of EpochReport whose whole state can be saved after
any epoch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sctune.config import Task, TrialConfig
from sctune.data.batches import stream
from sctune.data.decode import Decoding
from sctune.data.depth import with_range
from sctune.data.images import ImageCache
from sctune.data.split import Split, split_for
from sctune.errors import CheckpointError, ConfigError, DataError
from sctune.methods.base import TaskImages
from sctune.methods.registry import fresh_method
from sctune.metrics.objective import AUROC, Objective
from sctune.paths import cache_folder
from sctune.report import GPU_MEMORY, GPU_RESERVED, GPU_UTILISATION, EpochReport
from sctune.train.card import card_of, watched
from sctune.train.memory import keep_freed_memory
from sctune.train.runtime import apply_runtime, check_precision, resolve_device
from sctune.train.selection import build_selection

STATE_FORMAT = 1
VALUES = "method"
"""Name of a method's own values among those of a checkpoint; left out where it has none."""


class Trainer:
    """Trains one configuration on one task, an epoch at a time.

    config: the task's fields in it are replaced by the task's. cache: folder of the decoded images (default:
    under SCTUNE_HOME). weights: resolved ImageNet file, where the caller has it. split: where the caller made it.
    should_stop: asked before every iteration. objective: what its reports are judged by.

    Raises ConfigError, DataError or WeightsError before any training, NonFiniteError and StoppedError during it.
    """

    def __init__(
        self,
        config: TrialConfig,
        task: Task | None = None,
        *,
        cache: Path | None = None,
        weights: Path | None = None,
        split: Split | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        objective: Objective = AUROC,
    ) -> None:
        self._should_stop = should_stop
        self.task = task or task_of(config)
        config = config.for_task(self.task)
        self.epoch = 0
        apply_runtime(config.runtime)
        self.device = resolve_device(config.runtime.device)
        check_precision(config.runtime, self.device)
        self.split = split or split_for(config, self.task)
        self.config = config = with_range(config, self.split)
        data = config.data
        cached = ImageCache(cache or cache_folder()).array(
            self.split.root,
            [file.path for file in self.split.development],
            Decoding.of(data),
            data.skip_corrupt,
            self.split.content,
        )
        self.skipped = cached.skipped
        train = [file for file in self.split.train if file.path in cached.index]
        normals = [cached.index[file.path] for file in train if file.label == 0]
        anomalies = [cached.index[file.path] for file in train if file.label == 1]
        if config.n_anomalies != 0 and not anomalies:
            raise DataError(f"no readable anomalous image is left to train on in {self.split.root}")
        self.selection = build_selection(self.split, cached, data.selection_limit, data.partition_seed, objective)
        self.method = fresh_method(config, self.device, weights)
        self.method.prepare(TaskImages(cached.array, np.array(normals, int), np.array(anomalies, int)))

    def fit(self) -> Iterator[EpochReport]:
        """Train the epochs that remain, with one report after each."""
        while self.epoch < self.config.epochs:
            yield self.run_epoch()

    def run_epoch(self) -> EpochReport:
        """Train one epoch and score the selection images; raises NonFiniteError for a loss that is no number."""
        # not where a trainer is made: some are made to score alone
        keep_freed_memory(self.device)
        card = card_of(self.device)
        started = time.perf_counter()
        if card is not None:
            card.begin()
        with watched(card) as usage:
            metrics = dict(self.method.run_epoch(self.epoch, self._should_stop))
            trained = time.perf_counter() - started
            self.epoch += 1
            values, raw = self._evaluate()
        metrics |= values
        metrics["images_per_second"] = self.method.images_per_epoch / trained
        metrics["seconds"] = time.perf_counter() - started
        if card is not None:
            metrics |= {GPU_MEMORY: card.allocated() / 2**20, GPU_RESERVED: card.reserved() / 2**20}
        if usage.mean is not None:
            metrics[GPU_UTILISATION] = usage.mean
        key = self.task.key
        scores = {f"{key}:{name}" if name else key: row for name, row in raw.items()}
        return EpochReport(self.epoch, self.config.epochs, metrics, scores, self.selection.objective.name)

    def time_step(self) -> tuple[float, int]:
        """Seconds of a step of an epoch as `run_epoch` trains it, and steps of an epoch; trains a little for it."""
        keep_freed_memory(self.device)
        return self.method.time_step()

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Everything that a later process needs to go on: named tensors, and JSON values about them."""
        tensors, values = self.method.state()
        meta: dict[str, object] = {
            "format_version": STATE_FORMAT,
            "epoch": self.epoch,
            "config": self.config.model_dump(),
            "task": self.task.model_dump(),
            "split": self.split.digest,
        }
        if values:
            meta[VALUES] = values
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, meta

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
        """Continue from `state()`; raises CheckpointError where it is of another configuration, task or split."""
        own = _comparable(self.state()[1] | {"epoch": meta.get("epoch")})
        other = _comparable(meta)
        for name in own:
            if own[name] != other.get(name):
                raise CheckpointError(f"the checkpoint's {name} differs from this trial's; start the trial anew")
        epoch = meta.get("epoch")
        if type(epoch) is not int or not 0 <= epoch <= self.config.epochs:
            raise CheckpointError(f"the checkpoint's epoch {epoch!r} is none of 0 .. {self.config.epochs}")
        values = meta.get(VALUES, {})
        if not isinstance(values, Mapping):
            raise CheckpointError(f"the checkpoint's {VALUES} are {values!r}, not named values")
        self.method.load_state(tensors, values)
        self.epoch = epoch

    def _evaluate(self) -> tuple[dict[str, float], dict[str, list[float]]]:
        with torch.random.fork_rng(devices=[]):
            # for scores that are drawn, which a configuration may ask for to compare with published code
            torch.manual_seed(stream(self.config.seed, "evaluate", self.epoch).initial_seed())
            return self.selection.evaluate(self.method.scorer())


def task_of(config: TrialConfig) -> Task:
    """The task that a configuration names by itself."""
    data = config.data
    return Task(
        source=data.source,
        category=data.category,
        setting=data.setting,
        known_class=data.known_class,
        seed=config.seed,
    )


def _comparable(meta: Mapping[str, object]) -> dict[str, str]:
    """Each value as JSON, which is how it was stored; which device trained it does not matter, nor how it scores."""
    content = json.loads(json.dumps(meta))
    content.pop(VALUES, None)
    config = content.get("config")
    if isinstance(config, dict):
        with suppress(ConfigError):
            # fields that the checkpoint's sctune did not have yet get what they stand for
            loaded = TrialConfig.load(config)
            content["config"] = config = loaded.model_dump()
            for name in loaded.entry.scoring:
                _drop(config, name)
        _drop(config, "runtime.device")
    return {name: json.dumps(value, sort_keys=True) for name, value in content.items()}


def _drop(tree: dict[str, Any], name: str) -> None:
    """Leave out a section, or one field of it."""
    section, _, leaf = name.partition(".")
    if not leaf:
        tree.pop(section, None)
    elif isinstance(tree.get(section), dict):
        tree[section].pop(leaf, None)
