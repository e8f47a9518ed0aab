"""Training one configuration by itself: `sctune train`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sctune.config import TrialConfig
from sctune.data.catalog import ImageFile
from sctune.data.decode import Decoding
from sctune.data.images import ImageCache
from sctune.errors import ConfigError
from sctune.methods.base import Fitted
from sctune.metrics.objective import AP, AUROC
from sctune.paths import cache_folder
from sctune.train.trainer import Trainer


def train_one(config: TrialConfig, out: Path | None, test: bool, say: Callable[[list[str]], None]) -> dict[str, Any]:
    """Train to the end; gives metrics and the configuration. `test` scores the test pool once, afterwards.

    out: a new folder for model.safetensors, config.json, metrics.json and scores.csv; ConfigError where it exists.
    """
    if out is not None and out.exists():
        raise ConfigError(f"--out {out} exists; give a new folder")
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
    report_card = {"format_version": 1, "metrics": metrics, "config": trainer.config.document()}
    if out is not None:
        _write(out, trainer, report_card, scores)
    return report_card


def score_test(trainer: Trainer, method: Fitted | None = None) -> list[tuple[str, int, float]]:
    """Path, label and score of every image of the test pool; looked at after training only.

    method: what scores in the place of the trainer's own.
    """
    return score_files(trainer, trainer.split.test, method)


def score_files(
    trainer: Trainer, files: Sequence[ImageFile], method: Fitted | None = None
) -> list[tuple[str, int, float]]:
    """Path, label and score of images of the trainer's data set, those left out that cannot be decoded."""
    data, split = trainer.config.data, trainer.split
    paths, developed = [file.path for file in files], [file.path for file in split.development]
    if set(paths) <= set(developed):
        # they were decoded for the training already, those of the test in mode `test`
        paths = developed
    cached = ImageCache(cache_folder()).array(split.root, paths, Decoding.of(data), data.skip_corrupt)
    files = [file for file in files if file.path in cached.index]
    scores = (method or trainer.method).score(cached.array[[cached.index[file.path] for file in files]])
    return [(file.path, file.label, float(score)) for file, score in zip(files, scores, strict=True)]


def _write(out: Path, trainer: Trainer, report: dict[str, Any], scores: list[tuple[str, int, float]]) -> None:
    out.mkdir(parents=True)
    state = {name: value.cpu().contiguous() for name, value in trainer.method.model_state().items()}
    save_file(state, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(report["config"], indent=1), encoding="utf-8")
    (out / "metrics.json").write_text(
        json.dumps({"format_version": 1, **report["metrics"]}, indent=1), encoding="utf-8"
    )
    if scores:
        with (out / "scores.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("path", "label", "score"), *scores])
