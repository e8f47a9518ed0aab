"""Pictures of what a trained configuration pastes, from selection images only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sctune.backbones.entry import IMAGENET_MEAN, IMAGENET_STD
from sctune.data.batches import stream
from sctune.errors import DataError
from sctune.methods.deviation.detector import to_pixels
from sctune.train.trainer import Trainer

WITHIN_ONE_IMAGE = ("cutmix", "cutpaste")
"""Kinds that move a piece of the receiver itself."""


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
    """At most `count` pseudo anomalies made with the trainer's weights from pairs of its held-out normal images.

    The pairs are drawn by the partition seed, no image twice. Where the augmentation takes nothing from another
    image, the donor is the receiver itself. Empty where `augment.kind` makes none. Raises DataError where fewer than
    two normals are held out.
    """
    config = trainer.config
    if config.augment.kind == "none":
        return []
    normals = trainer.selection.images[trainer.selection.labels == 0]
    count = min(count, len(normals) // 2)
    if count < 1:
        raise DataError("a gallery needs two held-out normal images at least")
    drawn = torch.randperm(len(normals), generator=stream(config.data.partition_seed, "gallery")).numpy()
    receivers = normals[drawn[:count]]
    donors = receivers if config.augment.kind in WITHIN_ONE_IMAGE else normals[drawn[count : 2 * count]]
    examples: list[PseudoExample] = []
    size = config.budget.batch_size
    for number, start in enumerate(range(0, count, size)):
        examples += _made(trainer, donors[start : start + size], receivers[start : start + size], number)
    return examples


def _made(trainer: Trainer, donors: np.ndarray, receivers: np.ndarray, number: int) -> list[PseudoExample]:
    given, taken = (
        to_pixels(part, trainer.device, trainer.config.runtime.channels_last) for part in (donors, receivers)
    )
    made = trainer.step.pseudo.alter(taken, given, number)
    results, own = _to_uint8(made.images), trainer.config.augment.kind in WITHIN_ONE_IMAGE
    pictures = list(receivers)
    return [
        PseudoExample(
            pictures[row] if own else donors[row],
            pictures[row],
            None if made.saliency is None else made.saliency[row, 0].cpu().numpy(),
            made.pasted[row, 0].cpu().numpy(),
            results[row],
        )
        for row in range(len(pictures))
    ]


def _to_uint8(images: Tensor) -> np.ndarray:
    mean, std = images.new_tensor(IMAGENET_MEAN)[:, None, None], images.new_tensor(IMAGENET_STD)[:, None, None]
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
