"""What a member of SAOE sees in a step: normal images, synthetic anomalies of its kind, outliers, seen anomalies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sctune.augment.changes import changed, quarter_turned
from sctune.augment.confetti import confetti
from sctune.augment.cut import Cut
from sctune.augment.cutpaste import cutpaste
from sctune.config import AugmentConfig, TrialConfig
from sctune.data.batches import endless, stream
from sctune.data.transfer import to_device
from sctune.methods.base import TaskImages
from sctune.methods.pixels import to_pixels
from sctune.methods.saoe.entry import SaoeSection
from sctune.methods.saoe.outliers import Outliers

UNION = AugmentConfig(kind="cutpaste", cutpaste="union")
"""A patch or a scar, each with chance 1/2."""


@dataclass(frozen=True)
class MemberBatch:
    """images [B, 3, S, S] in [0, 1]: normal, synthetic, outliers, seen anomalies; labels [B]: 0 for normal, else 1.

    counts: of the four kinds, in this order.
    """

    images: Tensor
    labels: Tensor
    counts: tuple[int, int, int, int]


def batch_counts(config: TrialConfig, outliers: bool) -> tuple[int, int, int, int]:
    """Normal, synthetic, outlier and seen slots of a batch.

    Half of the normal slots, rounded up, stay normal; of the others outliers take half, rounded down, where there are
    any. Without labelled anomalies nothing is seen.
    """
    slots = config.normal_slots
    made = slots // 2
    shown = made // 2 if outliers else 0
    return slots - made, made - shown, shown, config.budget.batch_size - slots


def member_batch(
    config: TrialConfig,
    images: TaskImages,
    outliers: Outliers | None,
    name: str,
    turns: Sequence[int],
    number: int,
    device: torch.device,
) -> MemberBatch:
    """The batch of a member in step `number`. turns: quarters that the turned member knows."""
    section, seed = config.method, config.seed
    assert isinstance(section, SaoeSection)
    counts = batch_counts(config, outliers is not None)
    normal, made, shown, seen = counts

    def pixels(kind: str, array: np.ndarray, rows: np.ndarray, count: int) -> Tensor:
        drawn = rows[endless(len(rows), count, number, seed, f"{name} {kind}")]
        return to_pixels(array[drawn], device, config.runtime.channels_last)

    receivers = pixels("synthetic", images.array, images.normals, made)
    synthetic = make_synthetic(name, receivers, section, turns, stream(seed, "synthetic", name, number))
    parts = [pixels("normal", images.array, images.normals, normal), synthetic.images]
    if outliers is not None:
        parts.append(pixels("outliers", outliers.images, outliers.rows, shown))
    if seen:
        parts.append(pixels("seen", images.array, images.anomalies, seen))
    moved, _ = changed(torch.cat(parts), changes_of(name, config.augment), seed, "rotation", name, number)
    labels = torch.ones(len(moved))
    labels[:normal] = 0
    if config.data.shuffle_labels:
        labels = labels[torch.randperm(len(labels), generator=stream(seed, "shuffle", name, number))]
    return MemberBatch(moved, to_device(labels, device), counts)


def make_synthetic(
    name: str, pixels: Tensor, section: SaoeSection, turns: Sequence[int], generator: torch.Generator
) -> Cut:
    """Synthetic anomalies of a member from normal images [M, 3, S, S] in [0, 1]."""
    if name == "cutpaste":
        return cutpaste(pixels, pixels, UNION, generator)
    if name == "confetti":
        sizes = section.confetti_least, section.confetti_most
        return confetti(pixels, section.confetti_count, sizes, generator)
    chosen = torch.tensor(list(turns))[torch.randint(len(turns), (len(pixels),), generator=generator)]
    return Cut(quarter_turned(pixels, chosen), torch.ones_like(pixels[:, :1], dtype=torch.bool))


def changes_of(name: str, augment: AugmentConfig) -> AugmentConfig:
    """How a member's images are changed: one that tells turns apart turns and mirrors none of its own."""
    return augment.model_copy(update={"rotation": "none", "flip": "none"}) if name == "turned" else augment
