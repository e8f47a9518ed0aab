"""Sizes of images, known before any network is built.

Pure integer arithmetic, so that an impossible combination is refused when the configuration is made.
"""

from __future__ import annotations


def scale_sizes(image_size: int, n_scales: int) -> list[int]:
    """Image sides of the pyramid in pixels: full, then half."""
    return [image_size // 2**scale for scale in range(n_scales)]
