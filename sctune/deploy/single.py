"""The folder of a model that was trained by itself, by `sctune train --out`: `predict`, `evaluate`, `serve` take it."""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from sctune.config import yaml_text
from sctune.data.catalog import open_dataset
from sctune.data.digests import data_digest
from sctune.deploy.build import model_parts
from sctune.deploy.card import CardFacts, model_card
from sctune.deploy.model import ModelParts, write_model_folder
from sctune.errors import ConfigError
from sctune.files import check_writable, whole_folder
from sctune.metrics.objective import AUROC
from sctune.train.single import Trained

MADE_BY = "sctune train"
"""What stands in the place of the study's name; the trial's place has the folder's name."""


def check_new_folder(out: Path) -> None:
    """Before anything is trained: raises ConfigError where `out` exists or cannot be made."""
    if out.exists():
        raise ConfigError(f"--out {out} exists; give a new folder")
    check_writable(out.parent, "--out")


def write_trained(out: Path, trained: Trained) -> None:
    """Write the model's folder (`load_model_folder` reads it) with metrics.json, config.yaml and scores.csv in it.

    Its threshold is that of the usual false-alarm rate. Whole or not at all; raises ConfigError where it cannot be.
    """
    trainer = trained.trainer
    parts = _parts(out.name, trained)
    try:
        with whole_folder(out) as folder, tempfile.TemporaryDirectory() as staging:
            weights = Path(staging) / "weights.safetensors"
            save_file({name: value.cpu().contiguous() for name, value in trainer.method.model_state().items()}, weights)
            write_model_folder(folder, trainer.config, weights, parts)
            document = trainer.config.document()
            (folder / "config.yaml").write_text(yaml_text(document), encoding="utf-8")
            metrics = {"format_version": 1, **trained.metrics}
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
            if trained.test:
                with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as stream:
                    csv.writer(stream).writerows([("path", "label", "score"), *trained.test])
    except OSError as problem:
        raise ConfigError(f"cannot write {out}: {problem.strerror or problem}; give another --out") from None


def _parts(name: str, trained: Trained) -> ModelParts:
    trainer = trained.trainer
    split, data, task = trainer.split, trainer.config.data, trainer.task
    source = open_dataset(task.source, task.category, data.group)
    meta = {
        "study": MADE_BY,
        "trial": name,
        AUROC.metric: trained.metrics[AUROC.metric],
        "licence": source.licence,
        "attribution": source.attribution,
    }
    parts = model_parts(trainer, meta)
    results = {f"{AUROC.label} on the selection images ({split.mode})": f"{trained.metrics[AUROC.metric]:.4f}"}
    if trained.test:
        results[f"{AUROC.label} on the test images"] = f"{trained.metrics[f'test_{AUROC.name}']:.4f}, one training"
    facts = CardFacts(
        config=trainer.config,
        data={
            "name": source.name,
            "digest": data_digest(split.root, [file.path for file in split.development]),
            "licence": source.licence,
            "attribution": source.attribution,
        },
        counts=split.summary(),
        split={"split": split.digest, "partition seed": data.partition_seed},
        results=results,
        extra=("trained by itself, in no study: nothing was searched, and nothing is known of other seeds",),
    )
    return replace(parts, card=model_card(parts, facts))
