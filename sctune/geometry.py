"""Sizes of feature maps and patches, known before any network is built (METHODS of the patch head).

Pure integer arithmetic, so that an impossible combination is refused when the configuration is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneShape:
    """What a backbone gives at each tap: tap -> (halvings of the side, channels).

    n_blocks: leading blocks that can be frozen, the stem being the first.
    rounds_up: whether halving an odd side rounds up (symmetric padding) or down (static one-sided padding).
    """

    taps: dict[str, tuple[int, int]]
    n_blocks: int
    rounds_up: bool


BACKBONES = {
    # stem, layer1 .. layer4
    "resnet18": BackboneShape({"deep": (5, 512), "middle": (4, 256)}, n_blocks=5, rounds_up=True),
    # stem and the 16 inverted residual blocks; "deep" is before the last 1x1 convolution
    "efficientnet_lite0": BackboneShape({"deep": (5, 320), "middle": (4, 112)}, n_blocks=17, rounds_up=False),
}


def scale_sizes(image_size: int, n_scales: int) -> list[int]:
    """Image sides of the pyramid in pixels: full, then half."""
    return [image_size // 2**scale for scale in range(n_scales)]


def feature_side(image_size: int, backbone: str, tap: str) -> int:
    """Side of the square feature map in cells at a tap."""
    shape = BACKBONES[backbone]
    stride = 2 ** shape.taps[tap][0]
    return -(-image_size // stride) if shape.rounds_up else image_size // stride


def patch_side(side: int, patch_count: int, rule: str) -> int:
    """Side of a patch in cells on a map of `side` cells.

    half_plus1: floor(S/2) + 1 (the public code); half: floor(S/2); sqrt: round(S / sqrt(P));
    fit: half_plus1, made smaller until P diagonal positions exist (may be below 1: infeasible).
    """
    if rule == "half":
        return max(1, side // 2)
    if rule == "sqrt":
        return max(1, round(side / math.sqrt(patch_count)))
    if rule == "fit":
        return min(side // 2 + 1, side - patch_count + 1)
    return side // 2 + 1


def patch_offsets(side: int, patch: int, place: str) -> list[tuple[int, int]]:
    """All (row, column) positions of a patch: the main diagonal (`diag`) or the whole map (`grid2d`)."""
    steps = range(side - patch + 1)
    if place == "diag":
        return [(step, step) for step in steps]
    return [(row, column) for row in steps for column in steps]
