"""Confetti noise: small rectangles of one colour each, added to an image, after the idea of FCDD (Liznerski et al.).

Number and sizes are ours (BASELINES 2.2 b): FCDD's are known from memory alone, and its rectangles are turned besides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sctune.augment.cut import Cut, check_pixels
from sctune.data.transfer import to_like


def confetti(images: Tensor, count: float, sizes: tuple[float, float], generator: torch.Generator) -> Cut:
    """Copies of images [M, 3, H, W] in [0, 1] with rectangles added, clipped to [0, 1]; and where these lie.

    Each image has a Poisson number of them with mean `count`, one at least. Their sides are uniform between `sizes`,
    shares of the image's smaller side, rounded to pixels, one pixel at least; they lie upright at uniform places inside
    of the image. Each adds one colour, uniform in [-1, 1] for each of red, green and blue; colours of rectangles that
    overlap add up. generator: of the CPU. Raises ValueError as `augment.cut.check_pixels` does.
    """
    height, width = check_pixels(images, images)
    numbers = torch.poisson(torch.full((len(images),), float(count)), generator=generator).clamp_min(1)
    most = int(max(numbers.tolist(), default=1))
    draws = torch.rand(len(images), most, 7, generator=generator)
    side = min(height, width)
    low, high = sizes
    lengths = ((low + (high - low) * draws[..., :2]) * side).round().clamp(1, side)
    down = _covered(draws[..., 2], lengths[..., 0], height)
    across = _covered(draws[..., 3], lengths[..., 1], width)
    used = (torch.arange(most) < numbers[:, None])[..., None]
    down, across = to_like(down & used, images), to_like(across, images)
    colours = to_like(2 * draws[..., 4:] - 1, images)
    # [M, 3, H, K] @ [M, 1, K, W]: what is outside of all rectangles gets a sum of zeros, and stays as it is
    rows = (colours[..., None] * down[:, :, None]).permute(0, 2, 3, 1)
    added = rows @ across[:, None]
    pasted = (down.mT @ across) > 0
    return Cut((images + added).clamp(0, 1), pasted[:, None])


def _covered(draws: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Rows or columns [M, K, size] bool of rectangles whose place follows from draws [M, K] in [0, 1)."""
    first = (draws * (size - lengths + 1)).floor()[..., None]
    place = torch.arange(size)
    return (place >= first) & (place < first + lengths[..., None])
