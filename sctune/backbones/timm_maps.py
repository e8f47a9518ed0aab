"""The feature maps of a network of timm, all from one pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sctune.backbones.grid import on_one_grid


class Maps(nn.Module):
    """forward: images [N, 3, H, W] -> the maps `outputs` of a timm network on one grid [N, sum C, S, S].

    norm: maps of tokens pass through the last norm, as DINOv2's `get_intermediate_layers` has it.
    """

    def __init__(self, net: nn.Module, outputs: list[int], norm: bool) -> None:
        super().__init__()
        whole: Any = net
        self.outputs = list(whole.prune_intermediate_layers(outputs, prune_norm=not norm, prune_head=True))
        self.norm = norm
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return on_one_grid(intermediates(self.net, images, self.outputs, self.norm))


def intermediates(net: nn.Module, images: Tensor, outputs: list[int] | None, norm: bool) -> list[Tensor]:
    """The maps [N, C_i, S_i, S_i] of these numbers as they are, the shallowest first; None: all of them."""
    whole: Any = net
    maps: list[Tensor] = whole.forward_intermediates(
        images, indices=outputs, norm=norm, output_fmt="NCHW", intermediates_only=True
    )
    return maps
