"""VGG-16: its stages end in torchvision's pools, and its weights file is taken with or without a classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import vgg16

from sctune.backbones.registry import backbone_entry
from sctune.backbones.trunk import build_backbone
from sctune.config import ModelConfig
from sctune.errors import WeightsError

POOLS = (9, 16, 23, 30)
"""Places of pools 2 to 5 in torchvision's `features`."""


def test_names_and_shapes_are_torchvisions() -> None:
    with torch.device("meta"):
        theirs = vgg16().features.state_dict(prefix="features.")
        own = backbone_entry("vgg16").build().state_dict()
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in theirs.items()}


def test_taps_are_the_outputs_of_pools_2_to_5(tmp_path: Path) -> None:
    net = backbone_entry("vgg16").build()
    # the published file holds a classifier besides
    file = tmp_path / "vgg16.safetensors"
    save_file(net.state_dict() | {"classifier.6.bias": torch.zeros(1000)}, file)
    choice = ModelConfig(backbone="vgg16", taps="stride4,stride8,stride16,stride32", freeze=5)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected, maps = [], images
    with torch.inference_mode():
        for place, layer in enumerate(net.get_submodule("features").children()):
            maps = layer(maps)
            expected += [maps] if place in POOLS else []
        found = build_backbone(choice, file).eval().maps(images)
    assert [tuple(one.shape[1:]) for one in found] == [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert all(bool((one >= 0).all()) and float(one.std()) > 1e-3 for one in found)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    state = backbone_entry("vgg16").build().state_dict()
    file = tmp_path / "cut.safetensors"
    save_file({name: value for name, value in state.items() if name != "features.28.bias"}, file)
    with pytest.raises(WeightsError, match=r"do not fit VGG16: 1 entries missing.*'features\.28\.bias'"):
        build_backbone(ModelConfig(backbone="vgg16"), file)
