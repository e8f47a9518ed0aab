"""What a detector's training pastes, made with its weights of now."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sctune.backbones.entry import IMAGENET_MEAN, IMAGENET_STD
from sctune.data.batches import stream
from sctune.errors import DataError
from sctune.methods.base import PseudoExample
from sctune.methods.deviation.step import TrainingStep
from sctune.methods.pixels import to_images, to_pixels

WITHIN_ONE_IMAGE = ("cutmix", "cutpaste")
"""Kinds that move a piece of the receiver itself."""


def pseudo_examples(step: TrainingStep, normals: np.ndarray, count: int) -> list[PseudoExample]:
    """At most `count` pseudo anomalies of pairs of normal images uint8 [N, S, S, 3].

    The pairs are drawn by the partition seed, no image twice. Where the augmentation takes nothing from another
    image, the donor is the receiver itself. Empty where `augment.kind` makes none. Raises DataError for fewer than two
    images.
    """
    config = step.config
    if config.augment.kind == "none":
        return []
    count = min(count, len(normals) // 2)
    if count < 1:
        raise DataError("a gallery needs two held-out normal images at least")
    drawn = torch.randperm(len(normals), generator=stream(config.data.partition_seed, "gallery")).numpy()
    receivers = normals[drawn[:count]]
    donors = receivers if config.augment.kind in WITHIN_ONE_IMAGE else normals[drawn[count : 2 * count]]
    examples: list[PseudoExample] = []
    size = config.budget.batch_size
    for number, start in enumerate(range(0, count, size)):
        examples += _made(step, donors[start : start + size], receivers[start : start + size], number)
    return examples


def _made(step: TrainingStep, donors: np.ndarray, receivers: np.ndarray, number: int) -> list[PseudoExample]:
    given, taken = (to_pixels(part, step.device, step.config.runtime.channels_last) for part in (donors, receivers))
    made = step.pseudo.alter(taken, given, number)
    results, own = _to_uint8(made.images), step.config.augment.kind in WITHIN_ONE_IMAGE
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
    return to_images(images * std + mean).cpu().numpy()
