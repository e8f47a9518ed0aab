"""What torch has without a public name, in one place (tests/test_private_parts.py asks whether it is still there)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Pair = tuple[int, int]
Way = tuple[Pair, Pair, Pair, int]
"""How a convolution goes over a map: stride, padding, dilation, groups."""


def has_one_pass() -> bool:
    """Whether this torch has oneDNN, switched on."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def in_one_pass(
    maps: Tensor, weight: Tensor, bias: Tensor | None, way: Way, activation: str, numbers: list[float]
) -> Tensor:
    """A convolution with its activation by oneDNN, as torch's compiler calls it on a CPU; it has no gradient.

    activation: `none`, `relu` or `hardtanh`, with its numbers.
    """
    stride, padding, dilation, groups = way
    found: Tensor = torch.ops.mkldnn._convolution_pointwise(
        maps, weight, bias, padding, stride, dilation, groups, activation, numbers, ""
    )
    return found


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; a tensor of inference mode has none and raises RuntimeError."""
    return tensor._version


def is_watched(module: nn.Module) -> bool:
    """Whether somebody looks on when the module, or a part of it, is called."""
    return any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
