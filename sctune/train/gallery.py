"""Pictures of what a trained configuration pastes, from selection images only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sctune.errors import DataError
from sctune.model.detector import IMAGENET_MEAN, IMAGENET_STD, normalise, to_pixels
from sctune.train.trainer import Trainer


@dataclass(frozen=True)
class PseudoExample:
    """One pseudo anomaly: donor, receiver and result uint8 [S, S, 3]; saliency [S, S] in [0, 1]; mask [S, S] bool."""

    donor: np.ndarray
    receiver: np.ndarray
    saliency: np.ndarray
    mask: np.ndarray
    result: np.ndarray


def pseudo_examples(trainer: Trainer, count: int = 6) -> list[PseudoExample]:
    """At most `count` pseudo anomalies made with the trainer's weights from its held-out normal images.

    Raises DataError where fewer than two normals are held out.
    """
    normals = trainer.selection.images[trainer.selection.labels == 0]
    count = min(count, len(normals) // 2)
    if count < 1:
        raise DataError("a gallery needs two held-out normal images at least")
    channels_last = trainer.config.runtime.channels_last
    donors = normalise(to_pixels(normals[:count], trainer.device, channels_last))
    receivers = normalise(to_pixels(normals[count : 2 * count], trainer.device, channels_last))
    valid = torch.ones_like(donors[:, :1], dtype=torch.bool)
    made = trainer.step.pseudo_anomalies(donors, receivers, valid, 0)
    results = _to_uint8(made.images)
    return [
        PseudoExample(
            normals[row],
            normals[count + row],
            made.saliency[row, 0].cpu().numpy(),
            made.pasted[row, 0].cpu().numpy(),
            results[row],
        )
        for row in range(count)
    ]


def _to_uint8(images: Tensor) -> np.ndarray:
    mean, std = images.new_tensor(IMAGENET_MEAN)[:, None, None], images.new_tensor(IMAGENET_STD)[:, None, None]
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
