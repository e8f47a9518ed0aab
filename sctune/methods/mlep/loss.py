"""What MLEP learns by: reconstruction of normal images, and a margin between embeddings (Liu et al., IJCAI 2019).

Distances are means over all elements and the whole batch, as in the published code, so a batch has one hinge.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Margin:
    """hinge: max(0, margin + near - far); near, far: mean squared distances of anchors to positives and negatives."""

    hinge: Tensor
    near: Tensor
    far: Tensor


def unit_rms(maps: Tensor) -> Tensor:
    """Maps [N, C, s, s], each image's divided by the root of its mean square: a margin of 1 means the same for all."""
    # a floor, since the exporter to ONNX takes out what is added
    return maps / maps.square().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12).sqrt()


def reconstruction(images: Tensor, pictures: Tensor, anchors: int) -> Tensor:
    """Mean |image - picture| of the first `anchors` of normal images [N, 3, S, S], plus that of the others."""
    away = (images - pictures).abs()
    return away[:anchors].mean() + away[anchors:].mean()


def margin_loss(anchors: Tensor, positives: Tensor, negatives: Tensor, margin: float) -> Margin:
    """The hinge of embeddings [A, ...], [P, ...], [M, ...].

    The i-th anchor goes with the i-th positive and the i-th negative; where one kind has fewer images than the other,
    it begins again.
    """
    near, far = _distance(anchors, positives), _distance(anchors, negatives)
    return Margin((margin + near - far).clamp_min(0), near, far)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    pairs = torch.arange(max(len(first), len(second)), device=first.device)
    return (first[pairs % len(first)] - second[pairs % len(second)]).square().mean()
