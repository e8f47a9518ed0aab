"""VGG-16 of torchvision, without batch norm: five stages that end in a pool (Simonyan and Zisserman 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import TYPE_CHECKING

from sctune.backbones.entry import BackboneEntry, Tap, by_stride, halves, load_whole
from sctune.backbones.sources import TorchvisionWeights

if TYPE_CHECKING:
    from torch import nn


def _build() -> nn.Module:
    from torch import nn
    from torchvision.models.vgg import cfgs, make_layers

    class VGG16(nn.Module):
        """Without the classifier: it has nine tenths of the weights (half a gigabyte), and no map needs it."""

        def __init__(self) -> None:
            super().__init__()
            self.features = make_layers(cfgs["D"])

    net = VGG16()
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            # as torchvision does: torch's own would fade over thirteen layers
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return net


def _blocks(net: nn.Module, taps: Sequence[Tap]) -> list[nn.Module]:
    from torch import nn

    layers = list(net.get_submodule("features").children())
    ends = [number for number, layer in enumerate(layers, 1) if isinstance(layer, nn.MaxPool2d)]
    return [nn.Sequential(*layers[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


ENTRIES = (
    BackboneEntry(
        "vgg16",
        build=_build,
        blocks=_blocks,
        n_blocks=5,
        taps=by_stride(Tap(4, 128, after=2), Tap(8, 256, after=3), Tap(16, 512, after=4), Tap(32, 512, after=5)),
        rounding=halves(*[floor] * 5),
        load=load_whole("classifier."),
        weights=TorchvisionWeights("VGG16_Weights.IMAGENET1K_V1"),
        cost=306,
    ),
)
