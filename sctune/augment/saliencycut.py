"""SaliencyCut: paste the non-salient part of one normal image onto another (paper Algorithm 1, METHODS 1.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sctune.augment.cutmix import LEAST_AREA, LEAST_ASPECT, MOST_AREA
from sctune.augment.saliency import min_max, salient_mask, smooth_map
from sctune.config import AugmentConfig
from sctune.data.transfer import to_device


@dataclass(frozen=True)
class PseudoAnomalies:
    """What a maker of pseudo anomalies gives for M slots.

    images [M, C, H, W]; pasted [M, 1, H, W] bool: pixels that come from the donor;
    saliency [M, 1, H, W] in [0, 1], None for a maker that looks at none; flat [M] bool: constant saliency;
    dropped [M] bool: left as normal images.
    """

    images: Tensor
    pasted: Tensor
    saliency: Tensor | None
    flat: Tensor
    dropped: Tensor


def paste(donor: Tensor, receiver: Tensor, saliency: Tensor, threshold: float) -> Tensor:
    """(1 - S) * donor + S * receiver with S = saliency > threshold (paper Algorithm 1, line 5); [N, C, H, W]."""
    return torch.where(saliency > threshold, receiver, donor)


def saliencycut(
    donors: Tensor,
    receivers: Tensor,
    gradient: Tensor,
    valid: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
) -> PseudoAnomalies:
    """Pseudo anomalies [M, C, H, W] from donors and receivers of that shape, and the donors' gradients.

    valid [M, 1, H, W]: pixels that are real in donor and receiver; used with `paste_valid_only`.
    generator: CPU generator of the rectangles that replace constant saliency (`on_flat=rect`).
    """
    saliency, flat = min_max(smooth_map(gradient, config.grid_size, config.kernel))
    salient = salient_mask(saliency, config.threshold, config.threshold_mode, config.region)
    pasted = ~salient if config.region == "nonsalient" else salient
    dropped = torch.zeros_like(flat)
    if config.on_flat == "rect":
        shapes = to_device(rectangles(len(donors), donors.shape[-1], generator), pasted.device)
        pasted = torch.where(flat[:, None, None, None], shapes, pasted)
    elif config.on_flat == "drop":
        dropped = flat
        pasted = pasted & ~flat[:, None, None, None]
    if config.paste_valid_only:
        pasted = pasted & valid
    return PseudoAnomalies(torch.where(pasted, donors, receivers), pasted, saliency, flat, dropped)


def rectangles(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Masks [count, 1, size, size] of one rectangle each: area U(0.02, 0.15), log-uniform aspect 0.3 .. 1/0.3."""
    draws = torch.rand(4, count, generator=generator)
    area = LEAST_AREA + (MOST_AREA - LEAST_AREA) * draws[0]
    aspect = torch.exp(math.log(LEAST_ASPECT) * (1 - 2 * draws[1]))
    width = (size * (area * aspect).sqrt()).round().clamp(1, size)
    height = (size * (area / aspect).sqrt()).round().clamp(1, size)
    left = (draws[2] * (size - width + 1)).floor()
    top = (draws[3] * (size - height + 1)).floor()
    steps = torch.arange(size)
    rows = (steps >= top[:, None]) & (steps < (top + height)[:, None])
    columns = (steps >= left[:, None]) & (steps < (left + width)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]
