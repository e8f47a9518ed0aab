"""Rectangles pasted into images: `cutmix` as DRA's code has it, and `cutmix_pair`, CutMix's own idea (METHODS 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sctune.augment.cut import Cut, Places, check_pixels, move
from sctune.augment.jitter import draw_jitter
from sctune.config import AugmentConfig
from sctune.data.transfer import to_device

LEAST_AREA, MOST_AREA = 0.02, 0.15
"""Bounds of the patch as a share of the image."""

LEAST_ASPECT = 0.3
"""Width to height of the patch is log-uniform between this and its reciprocal."""

STRENGTH = 0.1
"""Of the colour jitter, for brightness, contrast, saturation and hue alike."""

LEAST_PAIR_AREA, MOST_PAIR_AREA = 0.02, 0.5
"""Bounds of the clipped box of `cutmix_pair` as a share of the image."""


def cutmix(receivers: Tensor, donors: Tensor, config: AugmentConfig, generator: torch.Generator) -> Cut:
    """Pseudo anomalies as DRA makes them: a patch of the same image, colour-jittered, pasted at another place.

    receivers [M, 3, H, W] in [0, 1], before rotation and normalisation, on any device; never written to. donors:
    same shape, not used. generator: of the CPU. No mixing of two images: in effect this is plain CutPaste.
    Raises ValueError for other shapes, integers, or images under 8 pixels a side.
    """
    height, width = check_pixels(receivers, donors)
    places = patch_places(len(receivers), height, width, generator, receivers.device)
    return move(receivers, places, draw_jitter(len(receivers), STRENGTH, generator))


def cutmix_pair(receivers: Tensor, donors: Tensor, config: AugmentConfig, generator: torch.Generator) -> Cut:
    """A box of another normal image, pasted at the same place (CutMix, Yun et al. 2019, without mixing labels).

    receivers, donors [M, 3, H, W] in [0, 1] on one device; never written to. generator: of the CPU. With
    lambda ~ Beta(1, 1) the box's sides are sqrt(1 - lambda) of the image's; its centre is uniform, what lies outside
    is clipped, and it is drawn again while it covers less than 0.02 or more than 0.5 of the image. Raises ValueError
    as `cutmix` does.
    """
    height, width = check_pixels(receivers, donors)
    boxes = pair_boxes(len(receivers), height, width, generator)
    left, right, top, bottom = to_device(boxes, receivers.device)[..., None]
    column = torch.arange(width, device=receivers.device)
    row = torch.arange(height, device=receivers.device)
    across = (column >= left) & (column < right)
    down = (row >= top) & (row < bottom)
    pasted = (down[:, :, None] & across[:, None, :])[:, None]
    return Cut(torch.where(pasted, donors, receivers), pasted)


def patch_places(
    count: int, height: int, width: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Places:
    """Where `cutmix` cuts and pastes: area U(0.02, 0.15) of the image, log-uniform aspect, uniform whole positions."""
    draws = torch.rand(count, 6, generator=generator, dtype=torch.float64).T
    area = (LEAST_AREA + (MOST_AREA - LEAST_AREA) * draws[0]) * height * width
    # in an image more than twice as long as wide, a patch of that area may fit with a milder aspect only
    aspect = torch.exp(math.log(LEAST_ASPECT) * (1 - 2 * draws[1])).clamp(area / height**2, width**2 / area)
    across = (area * aspect).sqrt().round().clamp(1, width).long()
    down = (area / aspect).sqrt().round().clamp(1, height).long()
    from_row, to_row = ((draw * (height - down + 1)).long() for draw in draws[2:4])
    from_column, to_column = ((draw * (width - across + 1)).long() for draw in draws[4:6])
    pixels = across * down
    length = max(pixels.tolist(), default=1)
    table = torch.stack([from_row * width + from_column, to_row * width + to_column, across, pixels])
    source, target, across, pixels = to_device(table, torch.device(device))[..., None]
    place = torch.arange(length, device=device)
    # a shorter patch's list goes on with its first pixel
    used = place < pixels
    place = place * used
    row = place // across
    offset = place + row * (width - across)
    return Places(source + offset, target + offset, used)


def pair_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Boxes of `cutmix_pair`, [4, count]: left, right, top, bottom in pixels, the ends excluded."""
    boxes = torch.zeros(4, count, dtype=torch.long)
    open_rows = torch.arange(count)
    while len(open_rows):
        share, across, down = torch.rand(len(open_rows), 3, generator=generator, dtype=torch.float64).T
        left, right = _side(share, across, width)
        top, bottom = _side(share, down, height)
        boxes[:, open_rows] = torch.stack([left, right, top, bottom])
        area = (right - left) * (bottom - top) / (height * width)
        open_rows = open_rows[(area < LEAST_PAIR_AREA) | (area > MOST_PAIR_AREA)]
    return boxes


def _side(share: Tensor, centre: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and one past the last pixel of a box, clipped; share of the area and centre in [0, 1)."""
    length = (share.sqrt() * size).round()
    first = (centre * size - length / 2).round()
    return first.clamp(0, size).long(), (first + length).clamp(0, size).long()
