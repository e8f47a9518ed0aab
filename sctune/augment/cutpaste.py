"""CutPaste (Li et al. 2021; METHODS 3.3): a patch or a thin turned scar of an image, pasted elsewhere in it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sctune.augment.cut import Cut, Places, check_pixels, move
from sctune.augment.cutmix import STRENGTH, patch_places
from sctune.augment.jitter import draw_jitter
from sctune.config import AugmentConfig
from sctune.data.transfer import to_device

SCAR_WIDTH, SCAR_HEIGHT = (2.0, 16.0), (10.0, 25.0)
"""Bounds in pixels of an image of `SCAR_SIZE`; other sizes scale them."""

SCAR_SIZE = 256

SCAR_DEGREES = 45.0
"""A scar is turned by up to this, either way."""


def cutpaste(receivers: Tensor, donors: Tensor, config: AugmentConfig, generator: torch.Generator) -> Cut:
    """Pseudo anomalies by the rule that config.cutpaste names.

    normal: the rule of `cutmix`. scar: a thin piece of the same image, colour-jittered, turned, and pasted at a
    uniform place where it fits; contrast is about the mean grey of the turned piece. union: each image one of the two
    with chance 1/2. Arguments and errors as `cutmix`.
    """
    height, width = check_pixels(receivers, donors)
    rule, size = config.cutpaste, (len(receivers), height, width)
    if rule == "union":
        scarred = torch.rand(len(receivers), generator=generator) < 0.5
        patch = patch_places(*size, generator, receivers.device)
        scar = scar_places(*size, generator, receivers.device)
        places = _either(to_device(scarred, receivers.device), scar, patch)
    elif rule == "scar":
        places = scar_places(*size, generator, receivers.device)
    else:
        places = patch_places(*size, generator, receivers.device)
    return move(receivers, places, draw_jitter(len(receivers), STRENGTH, generator))


def scar_places(
    count: int, height: int, width: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Places:
    """Where scars are cut and pasted.

    width U(2, 16) and height U(10, 25) px at 256 px, scaled by the image's smaller side, at least one pixel each;
    cut at a uniform whole position, turned by U(-45, 45) degrees (nearest pixel), and pasted around a uniform pixel
    such that the turned box lies inside the image.
    """
    draws = torch.rand(count, 7, generator=generator, dtype=torch.float64).T
    scale = min(height, width) / SCAR_SIZE
    across, down = (
        (scale * (low + (high - low) * draw)).round().clamp_min(1)
        for (low, high), draw in zip((SCAR_WIDTH, SCAR_HEIGHT), draws, strict=False)
    )
    angle = (2 * draws[2] - 1) * math.radians(SCAR_DEGREES)
    cosine, sine = angle.cos(), angle.sin()
    from_row = (draws[3] * (height - down + 1)).floor()
    from_column = (draws[4] * (width - across + 1)).floor()
    # the centre is a pixel's centre, so this pixel is always pasted, however thin the scar is
    margin_row = ((across * sine.abs() + down * cosine - 1) / 2).ceil()
    margin_column = ((across * cosine + down * sine.abs() - 1) / 2).ceil()
    to_row = margin_row + (draws[5] * (height - 2 * margin_row)).floor()
    to_column = margin_column + (draws[6] * (width - 2 * margin_column)).floor()
    reach = int(max([0.0, *margin_row.tolist(), *margin_column.tolist()]))
    table = torch.stack([cosine, sine, across, down, from_row, from_column, to_row, to_column])
    return _rotated(to_device(table, torch.device(device))[..., None], reach, width)


def _rotated(table: Tensor, reach: int, width: int) -> Places:
    """Places of the turned boxes, out of all pixels up to `reach` rows and columns around the centres.

    table [8, M, 1]: cosine, sine, across, down, from_row, from_column, to_row, to_column.
    """
    cosine, sine, across, down, from_row, from_column, to_row, to_column = table
    steps = torch.arange(-reach, reach + 1, device=table.device, dtype=table.dtype)
    row, column = (grid.flatten() for grid in torch.meshgrid(steps, steps, indexing="ij"))
    # the centre first: it is what a list is filled up with
    nearest_first = (row.abs() + column.abs()).argsort(stable=True)
    row, column = row[nearest_first], column[nearest_first]
    source_column = (column * cosine + row * sine + across / 2).floor()
    source_row = (row * cosine - column * sine + down / 2).floor()
    used = (source_column >= 0) & (source_column < across) & (source_row >= 0) & (source_row < down)
    source = (from_row + source_row) * width + from_column + source_column
    target = (to_row + row) * width + to_column + column
    source, target = (torch.where(used, numbers, numbers[:, :1]).long() for numbers in (source, target))
    return Places(source, target, used)


def _either(first_chosen: Tensor, first: Places, second: Places) -> Places:
    """Of each image the first places where chosen [M], else the second."""
    length = max(first.used.shape[1], second.used.shape[1])
    first, second = first.lengthened(length), second.lengthened(length)
    chosen = first_chosen[:, None]
    return Places(
        torch.where(chosen, first.source, second.source),
        torch.where(chosen, first.target, second.target),
        torch.where(chosen, first.used, second.used),
    )
