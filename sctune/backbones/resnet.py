"""ResNets of torchvision: stem, layer1 to layer4. ResNet-18 is the paper's (He et al. 2016, Zagoruyko et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from sctune.backbones.entry import BackboneEntry, Tap, by_stride, halves, load_whole
from sctune.backbones.sources import TorchvisionWeights

if TYPE_CHECKING:
    from torch import nn


def _entry(name: str, weights: str, widening: int, cost: float) -> BackboneEntry:
    def build() -> nn.Module:
        from torchvision.models import get_model

        return get_model(name, weights=None)

    return BackboneEntry(
        name,
        build=build,
        blocks=_blocks,
        n_blocks=5,
        taps=by_stride(*(Tap(4 << layer, (64 << layer) * widening, after=layer + 2) for layer in range(4))),
        rounding=halves(*[ceil] * 5),
        load=load_whole("fc."),
        weights=TorchvisionWeights(f"{weights}.IMAGENET1K_V1"),
        cost=cost,
    )


def _blocks(net: nn.Module, taps: Sequence[Tap]) -> list[nn.Module]:
    from torch import nn

    stem = nn.Sequential(*(net.get_submodule(part) for part in ("conv1", "bn1", "relu", "maxpool")))
    return [stem, *(net.get_submodule(f"layer{number}") for number in range(1, 5))]


ENTRIES = (
    _entry("resnet18", "ResNet18_Weights", 1, 36),
    _entry("resnet34", "ResNet34_Weights", 1, 73),
    _entry("resnet50", "ResNet50_Weights", 4, 81),
    _entry("wide_resnet50_2", "Wide_ResNet50_2_Weights", 4, 227),
)
