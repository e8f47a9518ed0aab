"""Blocks that do not train run in fewer passes: the same maps and gradients, and never those of earlier weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sctune.backbones.folded import folded
from sctune.backbones.padding import Around, PaddedConv2d, with_padding
from sctune.backbones.registry import SHIPPED, backbone_entry
from sctune.backbones.trunk import Backbone, build_backbone
from sctune.config import ModelConfig

LITE = "efficientnet_lite0"


def grown(module: nn.Module, seed: int = 0) -> nn.Module:
    """With statistics, scales and shifts as after a training: fresh ones would hide what is left out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) / 4)
                norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
                norm.weight.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
                norm.bias.copy_(torch.randn(norm.num_features, generator=generator) / 4)
    return module


def network(name: str = LITE, freeze: int | None = None, taps: str = "stride8,deep") -> Backbone:
    blocks = backbone_entry(name).n_blocks
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = build_backbone(ModelConfig(backbone=name, taps=taps, freeze=blocks if freeze is None else freeze), None)
    grown(net)
    net.folds = True
    return net.eval()


def images(count: int = 2, side: int = 75) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def by_blocks(net: Backbone, maps: Tensor) -> list[Tensor]:
    """Behind every block, each called as it is."""
    found = []
    for block in net.blocks:
        maps = block(maps)
        found.append(maps)
    return found


@pytest.mark.parametrize(
    ("name", "layout"),
    [*((name, torch.channels_last) for name in sorted(SHIPPED)), (LITE, torch.contiguous_format)],
)
def test_every_shipped_network_gives_the_same_maps(name: str, layout: torch.memory_format) -> None:
    net, pixels = network(name), images(side=65).contiguous(memory_format=layout)
    with torch.inference_mode():
        expected = by_blocks(copy.deepcopy(net).double(), pixels.double())
        found = net.behind(pixels, range(1, len(net.blocks) + 1))
    for number, one in enumerate(expected, 1):
        assert float((found[number] - one).norm() / one.norm()) < 1e-5, number


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "vgg16"])
def test_no_batch_norm_and_no_padding_is_left(name: str) -> None:
    for block in network(name).blocks:
        left = [type(module).__name__ for module in folded(block).modules()]
        assert "FoldedConvolution" in left
        assert not {"BatchNorm2d", "PaddedConv2d", "Conv2d", "ReLU6"} & set(left)


@pytest.mark.parametrize("around", [(0, 1, 0, 1), (1, 0, 2, 0), (1, 1, 1, 1), (2, 1, 0, 3), (0, 0, 0, 0)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [11, 12])
def test_zeros_around_a_map(around: Around, stride: int, side: int) -> None:
    conv = nn.Conv2d(4, 4, 3, stride, groups=4, bias=False)
    maps = images(1, side)[:, [0, 1, 2, 0]]
    expected = functional.conv2d(functional.pad(maps, around), conv.weight, stride=stride, groups=4)
    own = with_padding(conv, around)
    assert isinstance(own, PaddedConv2d) == (len(set(around)) > 1)
    assert own.weight is conv.weight
    torch.testing.assert_close(own(maps), expected)
    block = grown(nn.Sequential(own, nn.BatchNorm2d(4))).eval()
    with torch.no_grad():
        torch.testing.assert_close(folded(block)(maps), block[1](expected), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_images_through_frozen_blocks() -> None:
    net = network()
    asked = images().requires_grad_()
    plain = images().double().requires_grad_()
    (found,) = torch.autograd.grad(net(asked).square().mean(), asked)
    reference = copy.deepcopy(net).double()
    deep, first = by_blocks(reference, plain)[-1], by_blocks(reference, plain)[5]
    both = torch.cat([first, functional.interpolate(deep, size=first.shape[-2:], mode="bilinear")], dim=1)
    (expected,) = torch.autograd.grad(both.square().mean(), plain)
    # where an activation has its corner, rounding decides on which side a value lies
    assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_blocks_that_train_are_left_alone() -> None:
    net, other = network(freeze=6).train(), network(freeze=6).train()
    maps = net.frozen(images(4))
    expected = maps
    for block in other.blocks[6:]:
        expected = block(expected)
    net.behind(maps, {len(net.blocks)}, 6)[len(net.blocks)].sum().backward()
    expected.sum().backward()
    for (name, own), theirs in zip(net.blocks[6:].named_parameters(), other.blocks[6:].parameters(), strict=True):
        assert own.grad is not None and theirs.grad is not None and torch.equal(own.grad, theirs.grad), name
    for (name, own), theirs in zip(net.blocks[6:].named_buffers(), other.blocks[6:].buffers(), strict=True):
        assert torch.equal(own, theirs), name


def test_in_eval_mode_gradients_still_reach_weights() -> None:
    net = network(freeze=6)
    net(images()).sum().backward()
    assert all(weight.grad is not None for weight in net.blocks[6:].parameters())


@pytest.mark.parametrize("freeze", [0, 17])
def test_changed_weights_are_seen(freeze: int) -> None:
    net, other = network(freeze=freeze), network(freeze=freeze)
    grown(other, seed=5)
    pixels = images()

    def now(one: Backbone) -> Tensor:
        with torch.inference_mode():
            return one(pixels)

    before, expected = now(net), now(other)
    assert not torch.allclose(before, expected)
    net.load_state_dict(other.state_dict())
    assert torch.equal(now(net), expected)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(0.5)
    halved = now(net)
    assert not torch.allclose(halved, expected)
    net.load_state_dict(network(freeze=freeze).state_dict())
    assert torch.equal(now(net), before)
    # moved there and back: other memory, perhaps at the same place
    net.double().float()
    net.load_state_dict(other.state_dict())
    assert torch.equal(now(net), expected)


def test_what_was_folded_is_in_no_copy_and_no_state() -> None:
    net, pixels = network(), images()
    names = list(net.state_dict())
    with torch.inference_mode():
        expected = net(pixels)
    assert list(net.state_dict()) == names and len(list(net.modules())) == len(list(network().modules()))
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with torch.inference_mode():
            assert torch.equal(twin(pixels), expected)
            grown(twin, seed=7)
            assert not torch.allclose(twin(pixels), expected)
            assert torch.equal(net(pixels), expected)


def test_weights_made_in_inference_mode_are_not_followed() -> None:
    net, pixels = network(), images()
    with torch.inference_mode():
        twin = copy.deepcopy(net)
        torch.testing.assert_close(twin(pixels), net(pixels), rtol=1e-3, atol=1e-4)
        grown(twin, seed=7)
        assert torch.equal(twin.behind(pixels, {17})[17], by_blocks(twin, pixels)[-1])


def test_what_is_made_for_scoring_serves_training() -> None:
    net = network(freeze=6)
    with torch.inference_mode():
        net(images())
    net.train()
    net(images()).sum().backward()
    assert all(weight.grad is not None for weight in net.blocks[6:].parameters())


def test_an_exported_program_has_public_operations_alone() -> None:
    net, pixels = network(), images(1, 64)
    program = torch.export.export(net, (pixels,), strict=False)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("conv2d" in one for one in called) and not any("mkldnn" in one for one in called)
    with torch.inference_mode():
        torch.testing.assert_close(program.module()(pixels), net(pixels), rtol=1e-3, atol=1e-4)


def test_double_precision_is_computed_as_it_is() -> None:
    net, pixels = network().double(), images().double()
    with torch.inference_mode():
        assert torch.equal(net.behind(pixels, {17})[17], by_blocks(net, pixels)[-1])


def test_a_block_that_is_watched_is_called_itself() -> None:
    net, pixels, seen = network(), images(), []
    net.blocks[2].register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    with torch.inference_mode():
        net(pixels)
    assert seen == [2]


def test_weights_that_are_no_numbers_are_seen() -> None:
    net = network()
    with torch.no_grad():
        next(iter(net.parameters())).fill_(float("nan"))
        assert net(images()).isnan().any()


def test_one_image_is_computed_as_it_is() -> None:
    net, pixels = network(), images(1)
    with torch.inference_mode():
        assert torch.equal(net.behind(pixels, {17})[17], by_blocks(net, pixels)[-1])
        assert not torch.equal(net.behind(images(), {17})[17], by_blocks(net, images())[-1])


def test_a_dilated_kernel_with_uneven_zeros_stays_itself() -> None:
    own = with_padding(nn.Conv2d(3, 3, 3, dilation=2, bias=False), (0, 2, 0, 2))
    block = grown(nn.Sequential(own, nn.BatchNorm2d(3))).eval()
    assert folded(block) is block


class Choosing(nn.Module):
    """What it computes depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.part(maps)
        return found if maps.mean() > 0 else -found


class Shared(nn.Module):
    """Uses what a convolution gave beside what a batch norm makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, maps: Tensor) -> Tensor:
        found = self.conv(maps)
        normed: Tensor = self.norm(found)
        return normed + found


@pytest.mark.parametrize("kind", [Choosing, Shared])
def test_a_block_that_cannot_be_folded_stays_itself(kind: type[nn.Module]) -> None:
    block = grown(kind()).eval()
    assert folded(block) is block
