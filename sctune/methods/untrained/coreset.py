"""A few points that cover many: greedy k-centre (Gonzalez 1985; PatchCore, CVPR 2022, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

PROJECTED = 128
"""Dimensions in which distances are measured; a random projection hardly changes them (Johnson, Lindenstrauss)."""


def greedy_centres(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Numbers [min(count, M)] of points [M, C], each the farthest from those before it; the first is drawn.

    Distances are Euclidean, in a random projection to PROJECTED dimensions where there are more. generator: on the CPU.
    """
    places = points
    if points.shape[1] > PROJECTED:
        drawn = torch.randn(points.shape[1], PROJECTED, generator=generator, dtype=torch.float64)
        places = points @ (drawn / PROJECTED**0.5).to(points)
    chosen = torch.zeros(min(count, len(points)), dtype=torch.long, device=points.device)
    if not len(chosen):
        return chosen
    chosen[0] = int(torch.randint(len(points), (1,), generator=generator))
    squares = places.square().sum(dim=1)
    nearest = torch.full_like(squares, torch.inf)
    for number in range(1, len(chosen)):
        # an index that stays on the device: a number of Python's would wait for a GPU in every turn
        last = chosen[number - 1 : number]
        away = squares + squares[last] - 2 * (places @ places[last][0])
        nearest = torch.minimum(nearest, away)
        # chosen ones are at distance 0 but for rounding, and must never come again
        nearest[last] = -torch.inf
        chosen[number] = nearest.argmax()
    return chosen
