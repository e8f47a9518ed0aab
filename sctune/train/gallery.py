"""Pictures of what a trained configuration pastes, from selection images only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sctune.errors import DataError
from sctune.model.detector import IMAGENET_MEAN, IMAGENET_STD, to_pixels
from sctune.train.trainer import Trainer


@dataclass(frozen=True)
class PseudoExample:
    """One pseudo anomaly: donor, receiver and result uint8 [S, S, 3]; mask [S, S] bool: what was replaced.

    saliency [S, S] in [0, 1], None where the maker looks at none.
    """

    donor: np.ndarray
    receiver: np.ndarray
    saliency: np.ndarray | None
    mask: np.ndarray
    result: np.ndarray


def pseudo_examples(trainer: Trainer, count: int = 6) -> list[PseudoExample]:
    """At most `count` pseudo anomalies made with the trainer's weights from its held-out normal images.

    None where `augment.kind` makes none. Raises DataError where fewer than two normals are held out.
    """
    if trainer.config.augment.kind == "none":
        return []
    normals = trainer.selection.images[trainer.selection.labels == 0]
    count = min(count, len(normals) // 2)
    if count < 1:
        raise DataError("a gallery needs two held-out normal images at least")
    channels_last = trainer.config.runtime.channels_last
    donors = to_pixels(normals[:count], trainer.device, channels_last)
    receivers = to_pixels(normals[count : 2 * count], trainer.device, channels_last)
    made = trainer.step.pseudo.alter(receivers, donors, 0)
    results = _to_uint8(made.images)
    return [
        PseudoExample(
            normals[row],
            normals[count + row],
            None if made.saliency is None else made.saliency[row, 0].cpu().numpy(),
            made.pasted[row, 0].cpu().numpy(),
            results[row],
        )
        for row in range(count)
    ]


def _to_uint8(images: Tensor) -> np.ndarray:
    mean, std = images.new_tensor(IMAGENET_MEAN)[:, None, None], images.new_tensor(IMAGENET_STD)[:, None, None]
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
