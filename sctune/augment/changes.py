"""What training images go through before anything is pasted: turns, mirrors, shifts, brightness and contrast.

Each image has draws of its own, made on the CPU (a handful of numbers); the pixels move on their own device. A change
has a stream of draws for itself, so that turning one on leaves those of the others as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sctune.augment.jitter import adjust_brightness, adjust_contrast
from sctune.config import AugmentConfig
from sctune.data.batches import rotate, rotation_angles, stream
from sctune.data.transfer import to_device, to_like

CHANCE = 0.5
"""Of an image to be mirrored, in each direction that `augment.flip` names."""


def changed(pixels: Tensor, config: AugmentConfig, seed: int, *purpose: object) -> tuple[Tensor, Tensor]:
    """Images [N, C, S, S] in [0, 1], changed as `config` asks; and where they are real [N, 1, S, S] bool.

    Not real are the corners of a freely turned image and the mirrored border of a shifted one. seed, purpose: key the
    draws. Colours come first: corners stay black, and the contrast is about the mean grey of the picture itself.
    """
    coloured = _coloured(pixels, config, seed, *purpose)
    images, valid = _turned(coloured, config, seed, *purpose)
    if config.flip == "none" and config.shift == 0:
        return images, valid
    count, side = len(pixels), pixels.shape[-1]
    draws = torch.rand(count, 2, generator=stream(seed, *purpose, "flip"))
    mirrored = (draws < CHANCE) & torch.tensor(
        [config.flip in ("vertical", "both"), config.flip in ("horizontal", "both")]
    )
    draws = torch.rand(count, 2, generator=stream(seed, *purpose, "shift"))
    shifts = ((draws * 2 - 1) * config.shift * side).round().long()
    return move(images, mirrored, shifts), move(valid, mirrored, shifts) & to_device(inside(shifts, side), valid.device)


def quarter_turned(pixels: Tensor, turns: Tensor) -> Tensor:
    """Square images [N, C, S, S] turned counter-clockwise by turns [N] in 0 .. 3 quarters; turns: on the CPU."""
    turned = pixels.clone()
    for turn in (1, 2, 3):
        # chosen on the CPU: a GPU that counted them would have to be waited for
        rows = to_device((turns == turn).nonzero()[:, 0], pixels.device)
        turned[rows] = pixels[rows].rot90(turn, (2, 3))
    return turned


def move(pixels: Tensor, mirrored: Tensor, shifts: Tensor) -> Tensor:
    """Images [N, C, S, S], first mirrored [N, 2] bool, then moved by shifts [N, 2] pixels: (down, across).

    mirrored: (top to bottom, left to right). What a shift leaves open mirrors the image, its edge included; no shift
    is larger than S. mirrored, shifts: on the CPU.
    """
    side = pixels.shape[-1]
    source = torch.arange(side) - shifts[..., None]
    source = torch.where(source < 0, -1 - source, source)
    source = torch.where(source >= side, 2 * side - 1 - source, source)
    source = to_device(torch.where(mirrored[..., None], side - 1 - source, source), pixels.device)
    images = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    taken = pixels.permute(0, 2, 3, 1)[images, source[:, 0, :, None], source[:, 1, None, :]]
    return taken.permute(0, 3, 1, 2)


def inside(shifts: Tensor, side: int) -> Tensor:
    """Where images [N, 1, side, side] that were moved by shifts [N, 2] pixels are not mirrored."""
    source = torch.arange(side) - shifts[..., None]
    held = (source >= 0) & (source < side)
    return (held[:, 0, :, None] & held[:, 1, None, :])[:, None]


def _turned(pixels: Tensor, config: AugmentConfig, seed: int, *purpose: object) -> tuple[Tensor, Tensor]:
    draws = stream(seed, *purpose)
    if config.rotation == "free":
        return rotate(pixels, rotation_angles(len(pixels), config.rotation_degrees, draws), config.rotation_fill)
    everywhere = torch.ones_like(pixels[:, :1], dtype=torch.bool)
    if config.rotation == "none":
        return pixels.clone(), everywhere
    return quarter_turned(pixels, torch.randint(4, (len(pixels),), generator=draws)), everywhere


def _coloured(pixels: Tensor, config: AugmentConfig, seed: int, *purpose: object) -> Tensor:
    if config.brightness > 0:
        pixels = adjust_brightness(pixels, _factors(pixels, config.brightness, seed, *purpose, "brightness"))
    if config.contrast > 0:
        everywhere = torch.ones_like(pixels[:, :1], dtype=torch.bool)
        pixels = adjust_contrast(pixels, _factors(pixels, config.contrast, seed, *purpose, "contrast"), everywhere)
    return pixels


def _factors(pixels: Tensor, most: float, seed: int, *purpose: object) -> Tensor:
    """Factors [N], uniform in 1 - most .. 1 + most."""
    draws = torch.rand(len(pixels), generator=stream(seed, *purpose))
    return to_like(1 + most * (2 * draws - 1), pixels)
