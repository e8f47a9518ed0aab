"""Feature maps of several depths on one grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def on_one_grid(maps: list[Tensor]) -> Tensor:
    """Maps [N, C_i, S_i, S_i] as one [N, sum C_i, S, S]; S is the largest side, the others are interpolated bilinearly.

    A single map is given as it is.
    """
    if len(maps) == 1:
        return maps[0]
    side = max(maps, key=lambda one: one.shape[-1]).shape[-2:]
    resampled = [
        one if one.shape[-2:] == side else nn.functional.interpolate(one, size=side, mode="bilinear") for one in maps
    ]
    return torch.cat(resampled, dim=1)
