"""The U-Net with mask blocks of Huang et al. 2022 (SSM), as the authors' code for retinal images has it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from sctune.methods.ssm.masks import SETS

LEVELS = (1, 2, 4, 8, 8)
"""Channels of each level as multiples of the width; each level but the first has half the side of that above it."""
STRIDE = 2 ** (len(LEVELS) - 1)
"""Sides of images are multiples of it."""


class MaskBlock(nn.Module):
    """Adds a correction to a map [M, C, H, W] where it is visible; what is hidden passes as it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.correction = nn.Sequential(
            nn.Conv2d(width + 1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """mask [M, 1, h, w], 1 where visible: h and w are multiples of H and W, and the nearest pixel counts."""
        step = mask.shape[-1] // features.shape[-1]
        near = mask[..., ::step, ::step]
        correction: Tensor = self.correction(torch.cat([self.norm(features), near], dim=1))
        return features + near * correction


class UpBlock(nn.Module):
    """A map [M, C, H, W] at twice its side, beside the map [M, D, 2H, 2W] of the way down -> [M, width, 2H, 2W]."""

    def __init__(self, width_below: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(width_below, width, 1)
        self.merge = _convolved(nn.Conv2d(2 * width, width, 3, padding=1, bias=False))

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        # a 1x1 convolution gives the same before and after the copying of pixels, and costs a quarter before
        raised = functional.interpolate(self.narrow(below), scale_factor=2, mode="nearest")
        merged: Tensor = self.merge(torch.cat([raised, skip], dim=1))
        return merged


class MaskedUNet(nn.Module):
    """Masked images [M, 3, S, S] and their masks [M, 1, S, S] -> whole images, and masks as the network sees them.

    Both are values of tanh. width: channels at full size (the authors' 64). S is a multiple of 16.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * multiple for multiple in LEVELS]
        first = _convolved(nn.Conv2d(3, width, 3, padding=1, bias=False))
        halved = [
            _convolved(nn.Conv2d(above, own, 4, stride=2, padding=1, bias=False)) for above, own in pairwise(widths)
        ]
        upward = widths[::-1]
        self.down = nn.ModuleList([first, *halved])
        self.masks = nn.ModuleList([MaskBlock(own) for own in upward])
        self.up = nn.ModuleList([UpBlock(below, own) for below, own in pairwise(upward)])
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, masked: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        maps = []
        features = masked
        for block in self.down:
            features = block(features)
            maps.append(features)
        first, *masks = self.masks
        features = first(maps.pop(), mask)
        for up, corrected in zip(self.up, masks, strict=True):
            features = corrected(up(features, maps.pop()), mask)
        made = torch.tanh(self.out(features))
        return made[:, :3], made[:, 3:]


def reconstruct(network: nn.Module, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Images [N, 3, S, S] made anew from what their masks show: [N, 3, S, S]; and the masks that were seen.

    masks [N or 1, 3, 1, S, S], 0 where hidden. Each pixel comes from the pass that hid it; one that no pass hid is the
    image's own. The masks that were seen are [N, 3, 1, S, S].
    """
    held = masks.expand(images.shape[0], -1, -1, -1, -1)
    made, seen = network((images[:, None] * held).flatten(0, 1), held.flatten(0, 1))
    hidden = 1 - held
    stitched = (made.unflatten(0, (-1, SETS)) * hidden).sum(1) + images * (1 - hidden.sum(1))
    return stitched, seen.unflatten(0, (-1, SETS))


def _convolved(first: nn.Conv2d) -> nn.Sequential:
    """`first`, and a convolution that keeps what it gives, each with batch norm and ReLU."""
    width = first.out_channels
    return nn.Sequential(
        first,
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
