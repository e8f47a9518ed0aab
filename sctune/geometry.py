"""Sizes of feature maps, known before any network is built.

Pure integer arithmetic, so that an impossible combination is refused when the configuration is made.
"""

from __future__ import annotations

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
