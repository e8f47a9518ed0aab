"""Colour jitter for a batch: factors and order of its own for each image, over a masked set of pixels.

The operations agree with torchvision's adjust_brightness, _contrast, _saturation and _hue on float images; those take
one factor a call. Each works on pixels [N, 3, ...] in [0, 1] with one factor per image and stays in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sctune.data.transfer import to_device, to_like

OPERATIONS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Jitter:
    """Draws for M images, on the CPU.

    amounts [M, 4] float64: factors of brightness, contrast and saturation, and the shift of the hue in turns;
    order [M, 4]: which of `OPERATIONS` comes first, second, third, fourth.
    """

    amounts: Tensor
    order: Tensor


def draw_jitter(count: int, strength: float, generator: torch.Generator) -> Jitter:
    """ColorJitter(strength, strength, strength, strength): factors in 1 -+ strength, hue shifts in -+ strength."""
    draws = torch.rand(count, 8, generator=generator, dtype=torch.float64)
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    return Jitter(centre + strength * (2 * draws[:, :4] - 1), draws[:, 4:].argsort(dim=1))


def jitter_colours(pixels: Tensor, used: Tensor, jitter: Jitter) -> Tensor:
    """Jittered pixels [M, 3, ...]; used [M, 1, ...] bool: the pixels that count for the mean grey of the contrast.

    Pixels out of `used` are changed too; the caller has no use for them.
    """
    changed = pixels.clone(memory_format=torch.contiguous_format)
    amounts = to_like(jitter.amounts, pixels)
    for turn in range(len(OPERATIONS)):
        for number, operation in enumerate(OPERATIONS):
            # chosen on the CPU: a GPU that counted them would have to be waited for
            rows = to_device((jitter.order[:, turn] == number).nonzero()[:, 0], pixels.device)
            changed[rows] = _adjust(operation, changed[rows], amounts[rows, number], used[rows])
    return changed


def adjust_brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Pixels times factor [N]."""
    return (pixels * _per_image(factor, pixels)).clamp(0, 1)


def adjust_contrast(pixels: Tensor, factor: Tensor, used: Tensor) -> Tensor:
    """Away from the mean grey of the used pixels by factor [N] (towards it below 1)."""
    kept = used.flatten(1)
    # in double precision the sum does not depend on how many unused pixels lie between
    total = (grey(pixels).flatten(1) * kept).sum(dim=1, dtype=torch.float64)
    mean = (total / kept.sum(dim=1)).to(pixels.dtype)
    return _away_from(_per_image(mean, pixels), pixels, factor)


def adjust_saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Away from each pixel's own grey by factor [N]."""
    return _away_from(grey(pixels), pixels, factor)


def adjust_hue(pixels: Tensor, shift: Tensor) -> Tensor:
    """Hue turned by shift [N] in -0.5 .. 0.5 of the colour circle; value and saturation of HSV stay."""
    red, green, blue = pixels.unbind(dim=1)
    value = pixels.amax(dim=1)
    chroma = value - pixels.amin(dim=1)
    # grey pixels have no hue: any will do, as it is multiplied by a chroma of 0
    scale = 1 / torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    from_green = torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale)
    sector = torch.where(value == red, (green - blue) * scale, from_green)
    sector = sector + 6 * _per_image(shift, sector)
    bands = []
    for start in (5, 3, 1):
        place = (sector + start).remainder(6)
        bands.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(bands, dim=1)


def grey(pixels: Tensor) -> Tensor:
    """Luma [N, 1, ...] of pixels [N, 3, ...] with the weights of ITU-R BT.601, rounded as PIL and torchvision have."""
    red, green, blue = pixels.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _adjust(operation: str, pixels: Tensor, amount: Tensor, used: Tensor) -> Tensor:
    if operation == "brightness":
        return adjust_brightness(pixels, amount)
    if operation == "contrast":
        return adjust_contrast(pixels, amount, used)
    if operation == "saturation":
        return adjust_saturation(pixels, amount)
    return adjust_hue(pixels, amount)


def _away_from(centre: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    share = _per_image(factor, pixels)
    return (pixels * share + centre * (1 - share)).clamp(0, 1)


def _per_image(values: Tensor, pixels: Tensor) -> Tensor:
    return values.view(-1, *[1] * (pixels.ndim - 1))
