"""Heat maps of any method whose score can be differentiated."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.augment.saliency import smooth_map
from sctune.backbones.entry import IMAGENET_STD
from sctune.methods.pixels import to_pixels

GRID = 16
"""Cells of the smoothing grid: finer than the saliency of training, since a defect may be small."""


def gradient_maps(module: nn.Module, images: np.ndarray, device: torch.device) -> NDArray[np.float32] | None:
    """Maps [N, S, S] of uint8 images [N, S, S, 3]; None where no gradient of the score reaches the pixels.

    module: pixels [N, 3, S, S] in [0, 1] -> scores [N], on `device`, without gradients of its weights.
    """
    with torch.enable_grad():
        inputs = to_pixels(images, device).requires_grad_()
        scores = module(inputs)
        if not scores.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(scores.sum(), inputs)
    # by normalised pixels: a step of equal size in each colour
    return smoothed(gradient * gradient.new_tensor(IMAGENET_STD)[:, None, None])


def smoothed(gradient: Tensor) -> NDArray[np.float32]:
    """Heat maps [N, S, S] of gradients [N, 3, S, S]."""
    maps: NDArray[np.float32] = smooth_map(gradient, min(GRID, gradient.shape[-1] // 2))[:, 0].float().cpu().numpy()
    return maps
