"""What is hidden from the network: cells of an image in three disjoint sets, each hidden in one pass of three."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

SETS = 3
"""Passes an image is made anew in; each hides a third of the cells."""
BLOCK = 8
"""Pixels a side of the blocks that a second round shows again."""
LEAST_SURE = 0.8
"""Share of a block that must be surely normal for it to be shown."""


def hide_sets(side: int, cell: int, generator: torch.Generator) -> Tensor:
    """Three masks [3, 1, side, side] of an image that is cut into cells of `cell` x `cell` pixels: 0 hidden, 1 visible.

    Each cell is hidden in exactly one of them, drawn by the generator. The first two hide as many cells, the last one
    as many or up to two fewer. side is a multiple of cell, with three cells at least.
    """
    count = (side // cell) ** 2
    order = torch.randperm(count, generator=generator)
    owner = torch.empty(count, dtype=torch.long)
    for number, hidden in enumerate(order.split(ceil(count / SETS))):
        owner[hidden] = number
    pixels = owner.view(side // cell, -1).repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    return (pixels != torch.arange(SETS)[:, None, None])[:, None].float()


def surely_normal(errors: Tensor, threshold: Tensor) -> Tensor:
    """Where an image need not be hidden again [N, 1, S, S], 1 there and 0 elsewhere, by error maps [N, S, S].

    All blocks of 8 x 8 pixels of which more than 80 % have an error below the threshold; S is a multiple of 8.
    """
    sure = (errors < threshold).to(errors.dtype)[:, None]
    blocks = torch.nn.functional.avg_pool2d(sure, BLOCK) > LEAST_SURE
    return torch.nn.functional.interpolate(blocks.to(errors.dtype), scale_factor=BLOCK, mode="nearest")
