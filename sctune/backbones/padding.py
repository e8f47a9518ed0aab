"""Convolutions of maps with zeros around them."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from sctune.backbones.torch_private import Pair

Around = tuple[int, int, int, int]
"""Zeros at the left, right, top and bottom of a map."""


class PaddedConv2d(nn.Conv2d):
    """A convolution whose map has more zeros at one side than at the other, which `padding` cannot say."""

    around: Around = (0, 0, 0, 0)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, self.around))


def with_padding(conv: nn.Conv2d, around: Around) -> nn.Conv2d:
    """A convolution with the weights of one that has no padding, of maps with zeros around them.

    By `padding` where all sides are alike: a pass over the map less than zeros that are put there first.
    """
    even = len(set(around)) == 1
    kind = nn.Conv2d if even else PaddedConv2d
    kernel, stride, dilation = (cast(Pair, tuple(part)) for part in (conv.kernel_size, conv.stride, conv.dilation))
    padding = around[0] if even else 0
    found = kind(
        conv.in_channels, conv.out_channels, kernel, stride, padding, dilation, conv.groups, bias=False, device="meta"
    )
    found.weight, found.bias = conv.weight, conv.bias
    if isinstance(found, PaddedConv2d):
        found.around = around
    return found
