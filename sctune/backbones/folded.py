"""Blocks of a network as they score: padding, convolution, batch norm and activation as one convolution.

In eval mode a batch norm is a factor and an offset for each channel, which a convolution's weights and bias take in
(Jacob et al. 2018, section 3.2). On a CPU most of a small network's time goes into moving its maps: EfficientNet-Lite0,
with one pass over a map instead of four, takes little more than half of the time, and gives the same numbers but for
rounding (benchmarks/README.md).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sctune.backbones.padding import PaddedConv2d
from sctune.backbones.torch_private import Pair, has_one_pass, in_one_pass

_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"relu": functional.relu, "hardtanh": functional.hardtanh}
"""By the names under which oneDNN takes them into the convolution."""


class Kernel(NamedTuple):
    """What a convolution multiplies with, and how it goes over a map; padding: zeros at both ends of either axis."""

    weight: Tensor
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        stride, padding, dilation = (cast(Pair, part) for part in (conv.stride, conv.padding, conv.dilation))
        if not isinstance(conv, PaddedConv2d):
            return cls(conv.weight, conv.bias, stride, padding, dilation, conv.groups)
        left, right, top, bottom = conv.around
        # a kernel with zeros at one side passes over as many more of the map's at the other
        weight = functional.pad(
            conv.weight, (max(0, right - left), max(0, left - right), max(0, bottom - top), max(0, top - bottom))
        )
        return cls(weight, conv.bias, stride, (max(top, bottom), max(left, right)), dilation, conv.groups)

    def with_norm(self, norm: nn.BatchNorm2d) -> Kernel:
        """As if what it gives went through a batch norm in eval mode."""
        weight, bias = fuse_conv_bn_weights(
            cast(nn.Parameter, self.weight),
            cast("nn.Parameter | None", self.bias),
            cast(Tensor, norm.running_mean),
            cast(Tensor, norm.running_var),
            norm.eps,
            norm.weight,
            norm.bias,
        )
        return self._replace(weight=weight.detach(), bias=bias.detach())


class FoldedConvolution(nn.Module):
    """A convolution and perhaps an activation, by its name among `_ACTIVATIONS` and with its numbers."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, kernel: Kernel, activation: str | None, numbers: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("weight", kernel.weight.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if kernel.bias is None else kernel.bias.detach())
        self.way = kernel.stride, kernel.padding, kernel.dilation, kernel.groups
        self.activation, self.numbers = activation, numbers

    def forward(self, maps: Tensor) -> Tensor:
        if has_one_pass() and not maps.requires_grad:
            return in_one_pass(maps, self.weight, self.bias, self.way, self.activation or "none", list(self.numbers))
        found = functional.conv2d(maps, self.weight, self.bias, *self.way)
        return found if self.activation is None else _ACTIVATIONS[self.activation](found, *self.numbers)


def folded(block: nn.Module) -> nn.Module:
    """A copy of a block in eval mode that computes the same in fewer passes over its maps.

    For float32 maps on a CPU; gradients run through to its input alone. The block itself where there is nothing to
    fold, or where its code cannot be read as one row of calls.
    """
    own = copy.deepcopy(block).eval().requires_grad_(False)
    others = list(inspect.signature(own.forward).parameters.values())[1:]
    try:
        graph = _Tracer().trace(own, {one.name: one.default for one in others})
    except Exception:
        # code of any package, which may do with a traced value whatever it likes
        return block
    chains = [chain for node in graph.nodes if (chain := _chain(own, node)) is not None]
    for number, nodes in enumerate(chains):
        _replace(own, nodes, f"folded_{number}")
    return fx.GraphModule(own, graph).eval() if chains else block


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PaddedConv2d) or super().is_leaf_module(m, module_qualified_name)


def _chain(root: nn.Module, node: fx.Node) -> list[fx.Node] | None:
    """A convolution and what can be folded into it; None for another node, and where it stands alone."""
    module = _called(root, node)
    if type(module) not in (nn.Conv2d, PaddedConv2d) or not _zeros_by_number(cast(nn.Conv2d, module)):
        return None
    nodes = [node]
    for fits in (_has_statistics, _is_activation):
        after = next(iter(nodes[-1].users)) if len(nodes[-1].users) == 1 else None
        if after is not None and fits(_called(root, after)):
            nodes.append(after)
    return nodes if len(nodes) > 1 or type(module) is PaddedConv2d else None


def _replace(root: nn.Module, nodes: list[fx.Node], name: str) -> None:
    conv, *rest = (_called(root, node) for node in nodes)
    kernel, activation = Kernel.of(cast(nn.Conv2d, conv)), _activation(None)
    for module in rest:
        if isinstance(module, nn.BatchNorm2d):
            kernel = kernel.with_norm(module)
        else:
            activation = _activation(module)
    root.add_module(name, FoldedConvolution(kernel, *activation))
    graph, last = nodes[0].graph, nodes[-1]
    with graph.inserting_before(last):
        new = graph.call_module(name, (nodes[0].args[0],))
    last.replace_all_uses_with(new)
    for node in reversed(nodes):
        graph.erase_node(node)


def _called(root: nn.Module, node: fx.Node) -> nn.Module | None:
    return root.get_submodule(cast(str, node.target)) if node.op == "call_module" else None


def _zeros_by_number(conv: nn.Conv2d) -> bool:
    if isinstance(conv, PaddedConv2d) and tuple(conv.dilation) != (1, 1):
        # a zero beside the kernel would stand for several of the map's
        return False
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _has_statistics(module: nn.Module | None) -> bool:
    return type(module) is nn.BatchNorm2d and module.running_mean is not None


def _is_activation(module: nn.Module | None) -> bool:
    return type(module) in (nn.ReLU, nn.ReLU6)


def _activation(module: nn.Module | None) -> tuple[str | None, tuple[float, ...]]:
    if not _is_activation(module):
        return None, ()
    return ("relu", ()) if type(module) is nn.ReLU else ("hardtanh", (0.0, 6.0))
