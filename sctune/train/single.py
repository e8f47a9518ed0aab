"""Training one configuration by itself: `sctune train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sctune.config import TrialConfig
from sctune.data.catalog import ImageFile
from sctune.data.decode import Decoding
from sctune.data.images import ImageCache
from sctune.methods.base import Fitted
from sctune.metrics.objective import AP, AUROC
from sctune.paths import cache_folder
from sctune.train.trainer import Trainer


@dataclass(frozen=True)
class Trained:
    """A training by itself. metrics: of its last epoch, and of the test pool where it was opened; test: path, label
    and score of each test image, then."""

    trainer: Trainer
    metrics: Mapping[str, float]
    test: Sequence[tuple[str, int, float]] = ()

    @property
    def report(self) -> dict[str, Any]:
        """Metrics and configuration as JSON."""
        return {"format_version": 1, "metrics": dict(self.metrics), "config": self.trainer.config.document()}


def train_one(config: TrialConfig, test: bool, say: Callable[[list[str]], None]) -> Trained:
    """Train to the end. `test` scores the test pool once, afterwards."""
    trainer = Trainer(config)
    say([f"selection by {trainer.split.mode}: {trainer.split.reason}", *trainer.split.warnings])
    metrics: dict[str, float] = {}
    for report in trainer.fit():
        metrics = dict(report.metrics)
        chosen_by = f"selection {AUROC.label} {report.value:.4f}"
        loss = f"  loss {metrics['loss']:.4f}" if "loss" in metrics else ""
        say([f"epoch {report.epoch}/{report.epochs}{loss}  {chosen_by}"])
    scores: list[tuple[str, int, float]] = []
    if test:
        scores = score_test(trainer)
        labels, values = [row[1] for row in scores], [row[2] for row in scores]
        metrics |= {f"test_{figure.name}": figure.value(labels, values) for figure in (AUROC, AP)}
    return Trained(trainer, metrics, scores)


def score_test(trainer: Trainer, method: Fitted | None = None) -> list[tuple[str, int, float]]:
    """Path, label and score of every image of the test pool; looked at after training only.

    method: what scores in the place of the trainer's own.
    """
    return score_files(trainer, trainer.split.test, method)


def score_files(
    trainer: Trainer, files: Sequence[ImageFile], method: Fitted | None = None
) -> list[tuple[str, int, float]]:
    """Path, label and score of images of the trainer's data set, those left out that cannot be decoded."""
    files, images = read_files(trainer, files)
    scores = (method or trainer.method).score(images)
    return [(file.path, file.label, float(score)) for file, score in zip(files, scores, strict=True)]


def read_files(trainer: Trainer, files: Sequence[ImageFile]) -> tuple[list[ImageFile], np.ndarray]:
    """Those images of the trainer's data set that can be decoded, and their pixels uint8 [N, S, S, 3]."""
    data, split = trainer.config.data, trainer.split
    paths = [file.path for file in files]
    # as they were decoded already: for the training, where in mode `test` the test images are too, or for a look
    pools = ([file.path for file in pool] for pool in (split.development, split.test))
    paths = next((pool for pool in pools if set(paths) <= set(pool)), paths)
    cached = ImageCache(cache_folder()).array(split.root, paths, Decoding.of(data), data.skip_corrupt)
    readable = [file for file in files if file.path in cached.index]
    return readable, cached.array[[cached.index[file.path] for file in readable]]
