"""From input gradients to a smoothed saliency map (paper section 3.2, METHODS 1.3).

Pooling, B-spline smoothing and resizing are linear and separable, so the whole way from the pooled
g x g grid to the H x W map is two small matrix products, whatever the size of the kernel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sctune.data.transfer import to_like

Kernel = Literal["aligned", "official"]

FLAT_RANGE = 1e-12
"""A map whose values span less than this is constant: it says nothing about where to cut."""


def smooth_saliency(gradient: Tensor, grid_size: int, kernel: Kernel = "aligned") -> Tensor:
    """Saliency maps [N, 1, H, W] in [0, 1] of input gradients [N, 3, H, W].

    l2 norm over the channels, mean over the cells of a grid, B-spline smoothing, per-image min-max scaling.
    A constant map becomes all ones (as in the public code); `smooth_map` and `min_max` tell it apart.
    """
    return min_max(smooth_map(gradient, grid_size, kernel))[0]


def smooth_map(gradient: Tensor, grid_size: int, kernel: Kernel = "aligned") -> Tensor:
    """Smoothed gradient norm [N, 1, H, W], not yet scaled; 2 <= grid_size <= min(H, W) / 2."""
    height, width = gradient.shape[-2:]
    if not 2 <= grid_size <= min(height, width) // 2:
        raise ValueError(
            f"grid_size={grid_size} must lie in 2 .. {min(height, width) // 2} for {height}x{width} pixels"
        )
    norm = gradient.square().sum(dim=1, keepdim=True).sqrt()
    cells = functional.adaptive_avg_pool2d(norm, grid_size)
    rows = to_like(spline_matrix(height, grid_size, kernel), cells)
    columns = to_like(spline_matrix(width, grid_size, kernel), cells)
    return rows @ cells @ columns.mT


def min_max(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [N, 1, H, W] scaled to [0, 1] per image, and which were constant [N] (those become all ones)."""
    low = maps.amin(dim=(1, 2, 3), keepdim=True)
    span = maps.amax(dim=(1, 2, 3), keepdim=True) - low
    flat = span.flatten() < FLAT_RANGE
    scaled = (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny)
    return torch.where(flat[:, None, None, None], torch.ones_like(maps), scaled.clamp(0, 1)), flat


@lru_cache(maxsize=64)
def spline_matrix(size: int, grid_size: int, kernel: Kernel) -> Tensor:
    """[size, grid_size] matrix that smooths one axis: order-2 B-spline of spacing size // grid_size, then resizing.

    official: kernel and padding of the public code, stretched about the centre and fading at the border;
    aligned: every cell is centred at its true place (i + 0.5) * size / grid_size - 0.5 and constants stay constant.
    """
    spacing = size // grid_size
    unit = torch.eye(grid_size, dtype=torch.float64)[:, None]
    box = torch.ones(1, 1, spacing, dtype=torch.float64)
    if kernel == "official":
        spline = box
        for order in (1, 2):
            spline = functional.conv1d(spline, box, padding=order * spacing) / spacing
        wave = functional.conv_transpose1d(unit, spline, stride=spacing, padding=(spline.shape[-1] - 1) // 2)
        resized = functional.interpolate(wave, size=size, mode="linear", align_corners=True)
    else:
        spline = box
        for _ in range(2):
            spline = functional.conv1d(spline, box, padding=spacing - 1) / spacing
        padded = functional.pad(unit, (2, 2), mode="replicate")
        wave = functional.conv_transpose1d(padded, spline, stride=spacing)
        wave = wave[..., 3 * spacing - 1 : 3 * spacing - 1 + grid_size * spacing]
        resized = functional.interpolate(wave, size=size, mode="linear", align_corners=False)
    return resized[:, 0].T.contiguous()


def salient_mask(
    saliency: Tensor, threshold: float, mode: Literal["value", "area"] = "value", region: str = "nonsalient"
) -> Tensor:
    """Boolean mask [N, 1, H, W] of salient pixels of maps in [0, 1].

    value: saliency > threshold, strictly. area: the per-image quantile that makes the pasted region
    (`nonsalient`, or `salient`) cover a share `threshold` of the image.
    """
    if mode == "value":
        return saliency > threshold
    share = threshold if region == "nonsalient" else 1 - threshold
    flat = saliency.flatten(1)
    # the k-th smallest value, k = share * pixels: that many pixels are at or below it
    count = round(share * flat.shape[1])
    if count == 0:
        return torch.ones_like(saliency, dtype=torch.bool)
    bound = flat.kthvalue(count, dim=1).values
    return saliency > bound[:, None, None, None]
