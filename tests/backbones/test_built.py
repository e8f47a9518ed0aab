"""Every shipped backbone, built with random weights: its maps, what is frozen, and that nothing is left to chance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sctune.backbones.registry import SHIPPED, backbone_entry, feature_side
from sctune.backbones.trunk import Backbone, build_backbone
from sctune.config import ModelConfig

NAMES = sorted(SHIPPED)
STRIDES = ("stride4", "stride8", "stride16", "stride32")


def built(name: str, taps: tuple[str, ...], freeze: int = 0) -> Backbone:
    return build_backbone(ModelConfig(backbone=name, taps=",".join(taps), freeze=freeze), None)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 97, 97, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_every_tap_is_as_declared(name: str) -> None:
    with torch.device("meta"):  # without memory: only shapes are asked for
        net = built(name, ("deep",)).eval()
    entry = backbone_entry(name)
    assert entry.tap("deep") == entry.tap("stride32") and entry.tap("middle") == entry.tap("stride16")
    assert len(net.blocks) == entry.n_blocks == entry.tap("deep").after
    for size in (64, 75, 97, 113, 191, 225, 259):
        maps = [torch.empty(1, 3, size, size, device="meta")]
        for block in net.blocks:
            maps.append(block(maps[-1]))
        for tap in entry.taps:
            side = feature_side(size, name, (tap,))
            assert tuple(maps[entry.tap(tap).after].shape) == (1, entry.tap(tap).channels, side, side), (size, tap)
            assert abs(side - size / entry.tap(tap).stride) < 1, (size, tap)


@pytest.mark.parametrize("name", NAMES)
def test_costs_are_as_declared(name: str) -> None:
    with torch.device("meta"):
        net = built(name, ("deep",)).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, 224, 224, device="meta"))
    assert SHIPPED[name].cost == pytest.approx(counter.get_total_flops() / 2000 / 224**2, abs=0.5, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_several_maps_stand_on_the_grid_of_the_largest(name: str, images: Tensor) -> None:
    net = built(name, ("stride8", "stride16", "deep")).eval()
    entry = backbone_entry(name)
    with torch.inference_mode():
        features = net(images)
        alone = [Backbone(list(net.blocks)[: entry.tap(tap).after], 1).eval()(images) for tap in STRIDES[1:]]
    side = feature_side(97, name, STRIDES[1:])
    assert features.shape == (2, sum(entry.tap(tap).channels for tap in STRIDES[1:]), side, side)
    assert features.isfinite().all()
    raised = [nn.functional.interpolate(one, size=(side, side), mode="bilinear") for one in alone[1:]]
    assert torch.equal(features, torch.cat([alone[0], *raised], dim=1))


@pytest.mark.parametrize("name", NAMES)
def test_frozen_blocks_have_the_same_maps_and_no_gradients(name: str, images: Tensor) -> None:
    n_blocks = backbone_entry(name).n_blocks
    net = built(name, ("middle", "deep"), freeze=n_blocks - 1).train()
    moved = {key: value.clone() for key, value in net.state_dict().items()}
    features = net(images)
    assert torch.equal(features, net.after_frozen(net.frozen(images)))
    features.square().mean().backward()
    for place, block in enumerate(net.blocks):
        trained = place >= n_blocks - 1
        assert all((weight.grad is not None) == trained for weight in block.parameters()), place
        assert block.training == trained
    kept = [key for key in moved if int(key.split(".")[1]) < n_blocks - 1]
    assert kept and all(torch.equal(moved[key], net.state_dict()[key]) for key in kept)


@pytest.mark.parametrize("name", NAMES)
def test_training_drops_nothing_by_chance(name: str, images: Tensor) -> None:
    net = built(name, ("deep",)).train()
    before = torch.random.get_rng_state()
    assert torch.equal(net(images), net(images))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_map_inside_the_frozen_blocks_is_not_forgotten(images: Tensor) -> None:
    plain = built("resnet18", ("stride8", "deep")).eval()
    for freeze in range(6):
        net = built("resnet18", ("stride8", "deep"), freeze).eval()
        net.load_state_dict(plain.state_dict())
        with torch.inference_mode():
            assert torch.equal(net.after_frozen(net.frozen(images)), plain(images)), freeze
