"""Networks of torchvision that are one list of stages, `features`: MobileNets, EfficientNet-B0 and ConvNeXt."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import TYPE_CHECKING

from sctune.backbones.entry import BackboneEntry, Rounding, Tap, by_stride, halves, load_whole
from sctune.backbones.sources import TorchvisionWeights

if TYPE_CHECKING:
    from torch import nn

_UP = halves(*[ceil] * 5)


def _entry(
    name: str, weights: str, taps: tuple[Tap, ...], cost: float, rounding: Rounding = _UP, drops: bool = False
) -> BackboneEntry:
    """drops: whether its blocks are dropped by chance in training unless that is switched off."""

    def build() -> nn.Module:
        from torchvision.models import get_model

        return get_model(name, weights=None, **({"stochastic_depth_prob": 0.0} if drops else {}))

    return BackboneEntry(
        name,
        build=build,
        blocks=_blocks,
        n_blocks=taps[-1].after,
        taps=by_stride(*taps),
        rounding=rounding,
        load=load_whole("classifier."),
        weights=TorchvisionWeights(f"{weights}.IMAGENET1K_V1"),
        cost=cost,
    )


def _blocks(net: nn.Module, taps: Sequence[Tap]) -> list[nn.Module]:
    return list(net.get_submodule("features").children())


# "deep" is before the last 1x1 convolution, which widens for the classifier only
ENTRIES = (
    _entry(
        "mobilenet_v2",
        "MobileNet_V2_Weights",
        (Tap(4, 24, after=4), Tap(8, 32, after=7), Tap(16, 96, after=14), Tap(32, 320, after=18)),
        cost=6,
    ),
    _entry(
        "mobilenet_v3_large",
        "MobileNet_V3_Large_Weights",
        (Tap(4, 24, after=4), Tap(8, 40, after=7), Tap(16, 112, after=13), Tap(32, 160, after=16)),
        cost=4,
    ),
    _entry(
        "efficientnet_b0",
        "EfficientNet_B0_Weights",
        (Tap(4, 24, after=3), Tap(8, 40, after=4), Tap(16, 112, after=6), Tap(32, 320, after=8)),
        cost=7,
        drops=True,
    ),
    _entry(
        "convnext_tiny",
        "ConvNeXt_Tiny_Weights",
        (Tap(4, 96, after=2), Tap(8, 192, after=4), Tap(16, 384, after=6), Tap(32, 768, after=8)),
        cost=89,
        # stages begin with a convolution as large as its stride, without padding
        rounding=halves(*[floor] * 5),
        drops=True,
    ),
)
