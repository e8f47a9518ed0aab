"""The epoch loop of one configuration on one task (paper section 4.2, METHODS 1.1).

Knows no Ray, Optuna or MLflow: a generator of EpochReport whose whole state can be saved after any epoch.
All randomness follows from (seed, purpose, step), so the state is weights, optimiser moments and the epoch.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sctune.config import Task, TrialConfig
from sctune.data.batches import stream
from sctune.data.decode import Decoding
from sctune.data.depth import with_range
from sctune.data.images import ImageCache
from sctune.data.split import Split, split_for
from sctune.errors import CheckpointError, ConfigError, DataError, NonFiniteError, StoppedError
from sctune.methods.deviation.detector import build_detector
from sctune.methods.deviation.images import TrainingImages
from sctune.methods.deviation.scorer import RepeatedScorer
from sctune.methods.deviation.step import TrainingStep
from sctune.metrics.objective import AUROC, Objective
from sctune.paths import cache_folder
from sctune.report import EpochReport
from sctune.train.runtime import apply_runtime, memory_format, resolve_device
from sctune.train.selection import build_selection

STATE_FORMAT = 1


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
        self.task = task or Task(
            source=config.data.source,
            category=config.data.category,
            setting=config.data.setting,
            known_class=config.data.known_class,
            seed=config.seed,
        )
        config = config.for_task(self.task)
        self.epoch = 0
        apply_runtime(config.runtime)
        self.device = resolve_device(config.runtime.device)
        self.split = split or split_for(config, self.task)
        self.config = config = with_range(config, self.split)
        data = config.data
        cached = ImageCache(cache or cache_folder()).array(
            self.split.root,
            [file.path for file in self.split.development],
            Decoding.of(data),
            data.skip_corrupt,
        )
        self.skipped = cached.skipped
        train = [file for file in self.split.train if file.path in cached.index]
        normals = [cached.index[file.path] for file in train if file.label == 0]
        anomalies = [cached.index[file.path] for file in train if file.label == 1]
        if config.n_anomalies != 0 and not anomalies:
            raise DataError(f"no readable anomalous image is left to train on in {self.split.root}")
        self.selection = build_selection(self.split, cached, data.selection_limit, data.partition_seed, objective)
        self.detector = build_detector(config, weights)
        self.detector.to(self.device).to(memory_format=memory_format(config.runtime))
        images = TrainingImages(cached.array, np.array(normals, int), np.array(anomalies, int))
        trained = [weight for weight in self.detector.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.Adam(trained, lr=config.optim.lr, weight_decay=config.optim.weight_decay)
        self.step = TrainingStep(config, self.detector, self.optimiser, images, self.device)
        self.scorer = RepeatedScorer(self.detector)
        self._set_references()

    def fit(self) -> Iterator[EpochReport]:
        """Train the epochs that remain, with one report after each."""
        while self.epoch < self.config.budget.epochs:
            yield self.run_epoch()

    def run_epoch(self) -> EpochReport:
        """Train one epoch and score the selection images; raises NonFiniteError for a loss that is no number."""
        started = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._set_learning_rate()
        metrics = self._train_epoch()
        trained = time.perf_counter() - started
        self.epoch += 1
        values, raw = self._evaluate()
        metrics |= values
        budget = self.config.budget
        metrics["images_per_second"] = budget.iterations * budget.batch_size / trained
        metrics["seconds"] = time.perf_counter() - started
        if self.device.type == "cuda":
            metrics["gpu_memory_mb"] = torch.cuda.max_memory_allocated(self.device) / 2**20
        key = self.task.key
        scores = {f"{key}:{name}" if name else key: row for name, row in raw.items()}
        return EpochReport(self.epoch, budget.epochs, metrics, scores, self.selection.objective.name)

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Everything that a later process needs to go on: named tensors, and JSON values about them."""
        tensors = {f"model/{name}": value for name, value in self.detector.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optim/{index}/{name}": torch.as_tensor(value) for name, value in moments.items()}
        meta = {
            "format_version": STATE_FORMAT,
            "epoch": self.epoch,
            "config": self.config.model_dump(),
            "task": self.task.model_dump(),
            "split": self.split.digest,
        }
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, meta

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, object]) -> None:
        """Continue from `state()`; raises CheckpointError where it is of another configuration, task or split."""
        own = _comparable(self.state()[1] | {"epoch": meta.get("epoch")})
        other = _comparable(meta)
        for name in own:
            if own[name] != other.get(name):
                raise CheckpointError(f"the checkpoint's {name} differs from this trial's; start the trial anew")
        epoch = meta.get("epoch")
        if type(epoch) is not int or not 0 <= epoch <= self.config.budget.epochs:
            raise CheckpointError(f"the checkpoint's epoch {epoch!r} is none of 0 .. {self.config.budget.epochs}")
        model = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
        own_model = self.detector.state_dict()
        kinds = {name: value.dtype for name, value in model.items() if name in own_model}
        if any(own_model[name].dtype != kind for name, kind in kinds.items()):
            raise CheckpointError("the checkpoint does not fit the model: its numbers are of other types")
        moments = self._moments(tensors)
        try:
            self.detector.load_state_dict(model)
        except RuntimeError as problem:
            raise CheckpointError(
                f"the checkpoint does not fit the model: {str(problem).splitlines()[-1].strip()}"
            ) from None
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.epoch = epoch
        self.scorer = RepeatedScorer(self.detector)

    def _moments(self, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """Adam's state by the index of its parameter; CheckpointError where it is of other parameters."""
        trained = self.optimiser.param_groups[0]["params"]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            match = re.fullmatch(r"optim/([0-9]{1,6})/(step|exp_avg|exp_avg_sq)", name)
            if match is None and name.startswith("model/"):
                continue
            weight = trained[int(match[1])] if match and int(match[1]) < len(trained) else None
            if match is None or weight is None or value.shape != (() if match[2] == "step" else weight.shape):
                raise CheckpointError(f"the checkpoint does not fit the optimiser: {name!r}")
            moments.setdefault(int(match[1]), {})[match[2]] = value
        if any(len(state) != 3 for state in moments.values()):
            raise CheckpointError("the checkpoint does not fit the optimiser: a part of its state is missing")
        return moments

    def _set_learning_rate(self) -> None:
        rate = self.config.learning_rate(self.epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def _train_epoch(self) -> dict[str, float]:
        iterations = self.config.budget.iterations
        first = self.epoch * iterations
        self.detector.train()
        self.step.start_epoch(first)
        rows = [self._iterate(first + number) for number in range(iterations)]
        metrics = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            # a step without pseudo slots has no figures about them
            metrics[name] = float(torch.stack([row[name] for row in rows if name in row]).double().mean())
            if not np.isfinite(metrics[name]):
                raise NonFiniteError(
                    f"{name} is {metrics[name]} in epoch {self.epoch + 1}; a smaller optim.lr may help"
                )
        metrics["lr"] = self.optimiser.param_groups[0]["lr"]
        return metrics

    def _iterate(self, number: int) -> dict[str, Tensor]:
        if self._should_stop():
            raise StoppedError(f"stopped in epoch {self.epoch + 1}")
        return self.step.run(number)

    def _set_references(self) -> None:
        if self.step.references is not None:
            self.detector.set_references(self.step.references.for_scoring(self.epoch))

    def _evaluate(self) -> tuple[dict[str, float], dict[str, list[float]]]:
        self._set_references()
        with torch.random.fork_rng(devices=[]):
            # read by model.patch_evaluation=random only
            torch.manual_seed(stream(self.config.seed, "evaluate", self.epoch).initial_seed())
            return self.selection.evaluate(self.scorer)


def _comparable(meta: Mapping[str, object]) -> dict[str, str]:
    """Each value as JSON, which is how it was stored; which device trained it does not matter, nor how it scores."""
    content = json.loads(json.dumps(meta))
    config = content.get("config")
    if isinstance(config, dict):
        with suppress(ConfigError):
            # fields that the checkpoint's sctune did not have yet get what they stand for
            content["config"] = config = TrialConfig.load(config).model_dump()
        config.pop("score", None)
        for section, field in (("runtime", "device"), ("model", "patch_evaluation")):
            if isinstance(config.get(section), dict):
                config[section].pop(field, None)
    return {name: json.dumps(value, sort_keys=True) for name, value in content.items()}
