"""Cutting pixels out of images and pasting them elsewhere, for a whole batch at once.

A maker draws where to cut and paste on the CPU (a handful of numbers per image), so a GPU gives the same places as
the CPU and is never waited for; the pixels move by index lists on the images' own device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sctune.augment.jitter import Jitter, jitter_colours

LEAST_SIDE = 8
"""Smallest image side in pixels: below it no scar is sure to fit."""


@dataclass(frozen=True)
class Cut:
    """images [M, 3, H, W] in [0, 1]; pasted [M, 1, H, W] bool: pixels that were replaced."""

    images: Tensor
    pasted: Tensor


@dataclass(frozen=True)
class Places:
    """From which pixel each pasted pixel comes: lists of K entries for each of M images.

    source, target [M, K]: pixel numbers row * W + column; used [M, K] bool. Lists of different length are filled up
    with entries that repeat a used one, so that writing them changes nothing; `used` leaves them out of averages.
    """

    source: Tensor
    target: Tensor
    used: Tensor

    def lengthened(self, length: int) -> Places:
        """The same places with `length` >= K entries; the first entry, which must be a used one, is repeated."""
        more = length - self.used.shape[1]
        source, target = (torch.cat([kept, kept[:, :1].expand(-1, more)], dim=1) for kept in (self.source, self.target))
        return Places(source, target, functional.pad(self.used, (0, more)))


def move(images: Tensor, places: Places, jitter: Jitter | None) -> Cut:
    """Copies of images [M, 3, H, W] in which pixels replaced others of the same image, their colours jittered.

    jitter: none leaves the moved pixels as they are.
    """
    width = images.shape[-1]
    rows = torch.arange(len(images), device=images.device)[:, None]
    taken = images.permute(0, 2, 3, 1)[rows, places.source // width, places.source % width].mT
    if jitter is not None:
        taken = jitter_colours(taken, places.used[:, None], jitter)
    at = rows, places.target // width, places.target % width
    moved = images.clone()
    moved.permute(0, 2, 3, 1)[at] = taken.mT
    pasted = images.new_zeros((len(images), *images.shape[2:]), dtype=torch.bool)
    # not `pasted[at] = True`: a scalar would be copied to the device while the host waits
    pasted[at] = torch.ones_like(places.used)
    return Cut(moved, pasted[:, None])


def check_pixels(receivers: Tensor, donors: Tensor) -> tuple[int, int]:
    """Height and width of receivers [M, 3, H, W]; raises ValueError where no maker can work with them."""
    shape = tuple(receivers.shape)
    if len(shape) != 4 or shape[1] != 3 or not receivers.is_floating_point():
        raise ValueError(f"receivers are {receivers.dtype} {list(shape)}; makers need floats [M, 3, H, W]")
    if donors.shape != receivers.shape:
        raise ValueError(f"donors {list(donors.shape)} and receivers {list(shape)} must have the same shape")
    height, width = shape[2:]
    if min(height, width) < LEAST_SIDE:
        raise ValueError(f"images of {height}x{width} pixels are too small to cut; {LEAST_SIDE} a side are needed")
    return height, width
