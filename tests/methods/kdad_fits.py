"""Small trainings of KDAD, and its networks written a second time, for the tests of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sctune.backbones.trunk import build_backbone
from sctune.config import TrialConfig
from sctune.methods.kdad.method import KdadMethod
from sctune.methods.pixels import normalise
from sctune.methods.untrained.extractor import FrozenChoice

TAPS = ("stride4", "stride8", "stride16", "stride32")
OTHER: dict[str, Any] = {
    "method.taps": "stride8,stride16",
    "method.cloner": "equal",
    "method.ends": "relu",
    "method.normalise": False,
    "method.relative": False,
    "method.value_weight": 0.25,
    "method.score_skip": 0,
    "method.score_value": 2.0,
    "method.total_updates": "pass",
}
"""Every choice but the default one."""


def kdad(tiny: TrialConfig, values: dict[str, Any] | None = None) -> TrialConfig:
    """A configuration of two epochs of a few updates, with the backbone's own weights."""
    few = {"method.name": "kdad", "method.total_updates": 7, "model.weights": "imagenet"}
    return tiny.override({**few, **(values or {})})


def pixels_of(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255


def source_maps(method: KdadMethod, images: np.ndarray) -> list[NDArray[np.float64]]:
    """Of the source, built here, one image at a time."""
    config = method.config.method.model_dump()
    taps = TAPS if config["taps"] is None else tuple(config["taps"].split(","))
    net = build_backbone(FrozenChoice(method.config.model.backbone, taps), None).eval()
    state = method.model_state()
    net.load_state_dict({name: state[f"source.{name}"] for name in net.state_dict()})
    pixels = pixels_of(images)
    with torch.inference_mode():
        rows = [net.maps(normalise(one) if config["normalise"] else one) for one in pixels.split(1)]
    return [np.concatenate([one.numpy() for one in maps]).astype(np.float64) for maps in zip(*rows, strict=True)]


def copies(method: KdadMethod, images: np.ndarray, rectified: bool, batch: bool) -> list[NDArray[np.float64]]:
    """Of the cloner, layer by layer: its ReLU stands before the pool, as published.

    batch: whether norms take the statistics of these images, as training does.
    """
    state, config = method.model_state(), method.config.method.model_dump()
    deepest = 5 if config["taps"] is None else 4
    maps = pixels_of(images)
    maps = normalise(maps) if config["normalise"] else maps
    found = []
    for stage in range(deepest):
        wide = stage >= (1 if config["taps"] is None else 2)
        count = 2 if stage < 2 else 3
        for place in range(count):
            name = f"cloner.stages.{stage}.{3 * place}"
            maps = functional.conv2d(maps, state[f"{name}.weight"], padding=1)
            if place < count - 1:
                norm = f"cloner.stages.{stage}.{3 * place + 1}"
                held = (None, None) if batch else (state[f"{norm}.running_mean"], state[f"{norm}.running_var"])
                maps = functional.batch_norm(maps, *held, state[f"{norm}.weight"], state[f"{norm}.bias"], batch)
            if place < count - 1 or rectified or not wide:
                maps = functional.relu(maps)
        maps = functional.max_pool2d(maps, 2)
        found += [maps.detach().numpy().astype(np.float64)] if wide else []
    return found


def parts(
    maps: list[NDArray[np.float64]], others: list[NDArray[np.float64]], scale: NDArray[np.float64]
) -> NDArray[Any]:
    """[N, L, 2]: 1 - cosine, and mean square over scale, of each layer."""
    rows = []
    for one, other, by in zip(maps, others, scale, strict=True):
        flat, away = one.reshape(len(one), -1), other.reshape(len(one), -1)
        cosine = (flat * away).sum(axis=1) / np.linalg.norm(flat, axis=1) / np.linalg.norm(away, axis=1)
        rows.append(np.stack([1 - cosine, np.square(flat - away).mean(axis=1) / by], axis=1))
    return np.stack(rows, axis=1)
