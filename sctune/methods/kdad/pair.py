"""Source and cloner together: how far their critical layers differ in direction and in value, and the score of that.

Salehi et al. (CVPR 2021) section 3, as the public code weighs it: 1 for the direction, `value_weight` for the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from sctune.backbones.trunk import Backbone
from sctune.methods.kdad.cloner import Cloner
from sctune.methods.pixels import normalise

Shape = tuple[int, int, int]
"""Channels, height and width of a map."""


class Pair(nn.Module):
    """forward: pixels [N, 3, S, S] in [0, 1] -> scores [N].

    The source is frozen, and in eval mode always. shapes: of the L critical layers, the shallowest first; normalises:
    whether both networks see images normalised as ImageNet's. scale [L]: what the value parts are divided by; weights
    [L, 2]: of each layer's direction and value in the score.
    """

    scale: Tensor
    weights: Tensor

    def __init__(
        self, source: Backbone, cloner: Cloner, shapes: Sequence[Shape], normalises: bool, weights: Tensor
    ) -> None:
        super().__init__()
        self.source = source
        self.cloner = cloner
        self.shapes = tuple(shapes)
        self.normalises = normalises
        self.source.requires_grad_(False).eval()
        self.register_buffer("scale", torch.ones(len(shapes)))
        # not of the state: the configuration has it, and others may be tried on the same state
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(self.differences(self.source_maps(pixels), self.copies(pixels)))

    def source_maps(self, pixels: Tensor) -> list[Tensor]:
        """The source's critical layers [N, C_i, S_i, S_i] in float32."""
        return [one.float() for one in self.source.maps(self._seen(pixels))]

    def copies(self, pixels: Tensor) -> list[Tensor]:
        """What the cloner makes of them, of the same shapes."""
        return [one.float() for one in self.cloner(self._seen(pixels))]

    def differences(self, maps: Sequence[Tensor], copies: Sequence[Tensor]) -> Tensor:
        """[N, L, 2]: for each layer 1 - cosine of the flattened maps, in [0, 2], and the mean square by `scale`."""
        parts = []
        for one, copy, scale in zip(maps, copies, self.scale, strict=True):
            flat, other = one.flatten(1), copy.flatten(1)
            direction = 1 - functional.cosine_similarity(flat, other, dim=1)
            parts.append(torch.stack([direction, (other - flat).square().mean(dim=1) / scale], dim=1))
        return torch.stack(parts, dim=1)

    @staticmethod
    def cell_differences(maps: Sequence[Tensor], copies: Sequence[Tensor]) -> list[Tensor]:
        """[N, S_i, S_i] for each layer: 1 - cosine over the channels of a cell, in [0, 1], opposite ones cut off at 1.

        For pictures: the score takes the cosine of whole maps.
        """
        pairs = zip(maps, copies, strict=True)
        return [(1 - functional.cosine_similarity(one, copy, dim=1)).clamp(0, 1) for one, copy in pairs]

    def score(self, differences: Tensor) -> Tensor:
        """Scores [N] of differences [N, L, 2]."""
        return (differences * self.weights).sum(dim=(1, 2))

    @staticmethod
    def rows(maps: Sequence[Tensor]) -> Tensor:
        """Maps as one row an image, [N, D]: how they are kept."""
        return torch.cat([one.flatten(1) for one in maps], dim=1)

    @property
    def dimension(self) -> int:
        """D, numbers of an image's maps."""
        return sum(map(prod, self.shapes))

    def unrolled(self, rows: Tensor) -> list[Tensor]:
        """The maps in rows [N, D]."""
        parts = rows.split([prod(shape) for shape in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _seen(self, pixels: Tensor) -> Tensor:
        return normalise(pixels) if self.normalises else pixels


def score_weights(count: int, skip: int, value: float) -> Tensor:
    """Weights [count, 2] of direction and value in the score: 1 and `value`, none of the first `skip` layers."""
    weights = torch.tensor([[1.0, value]]).repeat(count, 1)
    weights[:skip] = 0
    return weights
