"""Where in an image the anomaly is: heat maps of a method.

Two kinds: `gradient`, the smoothed gradient of the anomaly score by the pixels (paper section 3.2, of the score instead
of the loss), and `score`, the scores of cells put back where they lie in the image. A method may lack either.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from sctune.augment.saliency import min_max
from sctune.methods.base import Fitted, Maps

Kind = Literal["gradient", "score"]
KINDS: tuple[Kind, ...] = ("gradient", "score")


def heat_maps(method: Fitted, images: np.ndarray, kind: Kind = "gradient", batch_size: int = 8) -> Maps | None:
    """Maps [N, S, S] of uint8 images [N, S, S, 3], not scaled: higher is more anomalous; None: it has no such maps.

    Values of the kind `score` can be compared between images, those of `gradient` within one.
    """
    make = {"gradient": method.gradients, "score": method.cells}[kind]
    parts: list[Maps] = []
    for start in range(0, len(images), batch_size):
        part = make(images[start : start + batch_size])
        if part is None:
            return None
        parts.append(part)
    return np.concatenate(parts) if parts else np.zeros((0, *images.shape[1:3]), np.float32)


def either_heat_maps(method: Fitted, images: np.ndarray, kind: Kind) -> Maps | None:
    """As `heat_maps`; of the other kind where the method has none of this one, None where it has neither."""
    made = (heat_maps(method, images, each) for each in dict.fromkeys((kind, *KINDS)))
    return next((maps for maps in made if maps is not None), None)


def some_heat_maps(method: Fitted, images: np.ndarray, kind: Kind) -> Maps:
    """As `either_heat_maps`, and flat where the method has neither kind."""
    maps = either_heat_maps(method, images, kind)
    return np.zeros(images.shape[:3], np.float32) if maps is None else maps


def scaled(maps: Maps) -> Maps:
    """Each map [S, S] of [N, S, S] stretched to [0, 1] for a picture; a constant one becomes 0."""
    stretched, flat = min_max(torch.from_numpy(maps)[:, None])
    stretched[flat] = 0
    return stretched[:, 0].numpy()
