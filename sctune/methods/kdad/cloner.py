"""The cloner: stages of convolutions that halve the image, some of which end in a copy of a map of the source.

As the public code has it, cloner "B" for VGG-16: two convolutions in the first two stages, three in the others, 3x3
without bias, batch norm behind each but the one before a pool, so that what is copied is not normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from sctune.backbones.entry import Tap

CONVOLUTIONS = (2, 2, 3)
"""Of a stage, the last number of all that follow: those of VGG-16."""


@dataclass(frozen=True)
class Stage:
    """inner: channels of all convolutions but the last; outer: of the last; count: convolutions; tapped: critical."""

    inner: int
    outer: int
    count: int
    tapped: bool


def stages_of(taps: Sequence[Tap], kind: Literal["small", "equal"], width: int) -> list[Stage]:
    """The stages for critical layers at different strides of a power of 2, the shallowest first.

    small: `width` channels wherever no map is copied; equal: the channels of the source, half of those of the next
    stage where no map is taken of it (64 for VGG-16, as it has itself).
    """
    wanted = {tap.stride: tap.channels for tap in taps}
    stages: list[Stage] = []
    for number in reversed(range(max(wanted).bit_length() - 1)):
        following = stages[0].outer if stages else 0
        outer = wanted.get(2 << number, width if kind == "small" else max(1, following // 2))
        inner = width if kind == "small" else outer
        count = CONVOLUTIONS[min(number, len(CONVOLUTIONS) - 1)]
        stages.insert(0, Stage(inner, outer, count, (2 << number) in wanted))
    return stages


class Cloner(nn.Module):
    """forward: images [N, 3, S, S] -> copies of the source's critical layers [N, C_i, S_i, S_i], the shallowest first.

    rectified: whether copies end in a ReLU.
    """

    def __init__(self, stages: Sequence[Stage], rectified: bool) -> None:
        super().__init__()
        channels = 3
        made = []
        for stage in stages:
            made.append(_layers(stage, channels, rectified or not stage.tapped))
            channels = stage.outer
        self.stages = nn.ModuleList(made)
        self.tapped = [stage.tapped for stage in stages]

    def forward(self, images: Tensor) -> list[Tensor]:
        copies = []
        for stage, tapped in zip(self.stages, self.tapped, strict=True):
            images = stage(images)
            if tapped:
                copies.append(images)
        return copies


def _layers(stage: Stage, channels: int, rectified: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(stage.count - 1):
        layers += [_convolution(channels, stage.inner), nn.BatchNorm2d(stage.inner), nn.ReLU(inplace=True)]
        channels = stage.inner
    # a pool and a ReLU give the same in either order, and behind the pool there is a quarter of the cells
    layers += [_convolution(channels, stage.outer), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, *([nn.ReLU()] if rectified else []))


def _convolution(channels: int, outer: int) -> nn.Conv2d:
    made = nn.Conv2d(channels, outer, 3, padding=1, bias=False)
    nn.init.xavier_uniform_(made.weight)
    return made
