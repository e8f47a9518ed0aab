"""How alike two images are: gradients over several scales (MS-GMS), and structure (SSIM).

GMS: Xue et al. 2014, "Gradient magnitude similarity deviation"; over scales and behind a median as SSM's code has it.
SSIM: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from sctune.data.transfer import to_device

SCALES = 4
STABILITY = 0.0026
"""c of the similarity of gradients: what it forgives where both images are flat."""
LEAST_SQUARE = 1e-6
"""Added to a squared gradient, so that its root has a slope where an image is flat; less is lost in an export."""
WINDOW, SPREAD = 11, 1.5
"""Pixels of SSIM's Gaussian window, and its standard deviation."""
C1, C2 = 0.01**2, 0.03**2


def gradients(images: Tensor) -> list[Tensor]:
    """Gradient magnitudes [N, 1, s, s] of images [N, 3, S, S] at s = S, S/2, S/4 and S/8."""
    levels = []
    grey = images.mean(1, keepdim=True)
    for scale in range(SCALES):
        grey = functional.avg_pool2d(grey, 2) if scale else grey
        levels.append(_gradient(median(grey)))
    return levels


def dissimilarities(levels: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """1 - GMS in [0, 1] of two images' `gradients`, at each scale."""
    return [
        1 - (2 * one * other + STABILITY) / (one.square() + other.square() + STABILITY)
        for one, other in zip(levels, others, strict=True)
    ]


def error_map(levels: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Mean over the scales of 1 - GMS, where it lies in the image: [N, S, S] in [0, 1]."""
    size = levels[0].shape[-2:]
    maps = [
        functional.interpolate(each, size=size, mode="bilinear", align_corners=False) if number else each
        for number, each in enumerate(dissimilarities(levels, others))
    ]
    return torch.stack(maps).mean(0)[:, 0]


def gms_loss(images: Tensor, others: Tensor) -> Tensor:
    """Mean over the scales of the mean of 1 - GMS of images [N, 3, S, S]."""
    parts = dissimilarities(gradients(images), gradients(others))
    return torch.stack([part.mean() for part in parts]).mean()


def ssim_loss(images: Tensor, others: Tensor) -> Tensor:
    """1 - mean SSIM of images [N, 3, S, S] in [0, 1], over all places that hold a whole window; S is 11 at least."""
    window, one, other = to_device(_window(images.shape[-1]), images.device), images.double(), others.double()
    mean, other_mean = along_both(window, one), along_both(window, other)
    mean_squares, mean_product = mean.square() + other_mean.square(), mean * other_mean
    variances = along_both(window, one.square() + other.square()) - mean_squares
    covariance = along_both(window, one * other) - mean_product
    luminance = (2 * mean_product + C1) / (mean_squares + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    return (1 - (luminance * structure).mean()).to(images.dtype)


def along_both(matrix: Tensor, maps: Tensor) -> Tensor:
    """A matrix [T, S] of doubles along both axes of maps [..., S, S]: doubles [..., T, T].

    A GPU would multiply floats with ten bits of mantissa under runtime.precision=tf32: nothing is left then of a
    variance that is a difference of such products, and images lose bits that were in their file.
    """
    return matrix @ maps.double() @ matrix.mT


def median(maps: Tensor) -> Tensor:
    """Median of the 3 x 3 pixels about each of [N, C, H, W]; the border is repeated outwards.

    Columns of three are sorted once; of three sorted columns side by side the median is that of the largest smallest,
    the middle middle and the smallest largest value.
    """
    padded = functional.pad(maps, (1, 1, 1, 1), mode="replicate")
    low, middle, high = _ordered(padded[..., :-2, :], padded[..., 1:-1, :], padded[..., 2:, :])
    lows, middles, highs = (_side_by_side(part) for part in (low, middle, high))
    largest = torch.maximum(torch.maximum(lows[0], lows[1]), lows[2])
    smallest = torch.minimum(torch.minimum(highs[0], highs[1]), highs[2])
    return _middle(largest, _middle(*middles), smallest)


def _gradient(maps: Tensor) -> Tensor:
    """Root of the squared Prewitt gradients, a third of the usual ones, across and down [N, 1, H, W]."""
    padded = functional.pad(maps, (1, 1, 1, 1), mode="replicate")
    # a mean over three is the sum of Prewitt's filter and its third
    across = functional.avg_pool2d(padded[..., 2:] - padded[..., :-2], (3, 1), stride=1)
    down = functional.avg_pool2d(padded[..., 2:, :] - padded[..., :-2, :], (1, 3), stride=1)
    return (across.square() + down.square() + LEAST_SQUARE).sqrt()


def _side_by_side(padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The left, own and right neighbour of each place [..., W] of [..., W + 2]."""
    return padded[..., :-2], padded[..., 1:-1], padded[..., 2:]


def _ordered(one: Tensor, two: Tensor, three: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.minimum(one, two), torch.maximum(one, two)
    middle, top = torch.minimum(high, three), torch.maximum(high, three)
    return torch.minimum(low, middle), torch.maximum(low, middle), top


def _middle(one: Tensor, two: Tensor, three: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(one, two), torch.minimum(torch.maximum(one, two), three))


@lru_cache(maxsize=8)
def _window(side: int) -> Tensor:
    """[side - 10, side] matrix of doubles that takes SSIM's weighted means along one axis."""
    away = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-away.square() / (2 * SPREAD**2))
    spread = functional.conv1d(torch.eye(side, dtype=torch.float64)[:, None], (weights / weights.sum())[None, None])
    return spread[:, 0].T
