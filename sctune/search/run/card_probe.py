"""In a worker on a GPU: what the card is, and what a class of configurations takes of it.

What a trial holds on a card follows from its networks and the shape of its images, not from what these show. So it is
tried on images of noise with random weights: a node needs neither data nor weights for it, and nothing is published.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sctune.config import Task, TrialConfig
from sctune.data.split import split_for
from sctune.errors import ClusterError
from sctune.methods.room import ON_GPU
from sctune.search.run.probe import Trial, timed
from sctune.train.card import MOST_CONTEXT_BYTES, Card, own_card
from sctune.trial.remote import answered
from sctune.trial.trainable import is_out_of_memory

NORMALS, ANOMALIES = 96, 48
"""Images of noise: enough for every method, each selection mode and the usual numbers of known anomalies."""

TOO_SMALL = "too_small"
"""In an answer: the class does not fit on the card."""


@dataclass(frozen=True)
class Asked:
    """config: tree of the configuration that is tried; tasks: that a trial trains at a time; images: of the largest
    task; objective: its name; threads: of a trial.
    """

    config: dict[str, Any]
    tasks: int
    images: int
    objective: str
    threads: int


def look(card: Card | None = None) -> dict[str, Any]:
    """{"name", "total"} of the card that this worker was given, or why not (`sctune.trial.remote.answered`)."""

    def found() -> dict[str, Any]:
        seen = card or _card()
        return {"name": seen.name, "total": seen.total}

    return answered(found)


def try_class(asked: Mapping[str, Any], card: Card | None = None) -> dict[str, Any]:
    """{"peak", "context": bytes, "step", "epoch": seconds}, {TOO_SMALL: True}, or why not; raises nothing."""
    return answered(lambda: _tried(Asked(**asked), card or _card()))


def asked_of(config: TrialConfig, tasks: int, images: int, objective: str, threads: int) -> dict[str, Any]:
    """What `try_class` takes, as plain values."""
    return asdict(Asked(config.model_dump(), tasks, images, objective, threads))


def _card() -> Card:
    card = own_card()
    if card is None:
        raise ClusterError("Ray gave this worker a GPU, and torch sees none; look at nvidia-smi on its node")
    return card


def _tried(asked: Asked, card: Card) -> dict[str, Any]:
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory(prefix="sctune-card-") as name:
        folder = Path(name)
        try:
            return _measured(asked, card, _on_noise(TrialConfig.load(asked.config), folder), folder)
        except Exception as problem:
            if is_out_of_memory(problem):
                return {TOO_SMALL: True}
            raise
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _measured(asked: Asked, card: Card, config: TrialConfig, folder: Path) -> dict[str, Any]:
    task = Task(source=config.data.source, setting=config.data.setting, seed=config.seed)
    split = split_for(config, task)
    card.begin()
    # as a worker does that trains: decoded images lie in the cache of this try
    trainer, step, steps, scoring = timed(
        Trial(config, task, split, asked.objective, asked.threads, asked.tasks), folder / "cache"
    )
    others = asked.tasks - 1
    state = sum(value.nbytes for value in trainer.state()[0].values()) * others
    # of as many images as the largest task has, in the one room of all tasks
    images = max(asked.images, len(split.development))
    kept = min(ON_GPU.most, ON_GPU.held * images * asked.tasks // len(split.development)) - ON_GPU.held
    return {
        "peak": card.reserved() + state + max(0, kept),
        "context": min(card.beside(), MOST_CONTEXT_BYTES),
        "step": step,
        "epoch": steps * step + scoring,
    }


def _on_noise(config: TrialConfig, folder: Path) -> TrialConfig:
    """The same configuration with random weights, on images of noise in `folder`."""
    rng = np.random.default_rng(0)
    side = config.data.image_size
    for kind, count in (("ok", NORMALS), ("nok", ANOMALIES)):
        (folder / kind).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number:03}.png", compress_level=0)
    setting = "anomaly-free" if config.data.setting == "anomaly-free" else "general"
    own = {
        "data.source": f"normal={folder / 'ok'};anomalous={folder / 'nok'}",
        "data.category": None,
        "data.setting": setting,
        "data.known_class": None,
        "data.selection": "auto",
        "data.group": None,
        "data.range": "auto",
        "data.page": None,
        "runtime.device": "auto",
    }
    if config.entry.looks_at("model.weights"):
        own["model.weights"] = "random"
    if getattr(config.method, "outlier_root", None):
        own["method.outlier_root"] = None
    return config.override(own)
