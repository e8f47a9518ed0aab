"""Where in an image the anomaly is: heat maps of a method, and how well they fit defect masks.

Two kinds: `gradient`, the smoothed gradient of the anomaly score by the pixels (paper section 3.2, of the score instead
of the loss), and `score`, the scores of cells put back where they lie in the image. A method may lack either.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from sctune.augment.saliency import min_max
from sctune.errors import DataError
from sctune.methods.base import Maps, Method

Kind = Literal["gradient", "score"]
KINDS: tuple[Kind, ...] = ("gradient", "score")
PRO_LIMIT = 0.3
"""False-positive rate up to which the per-region overlap is integrated, as usual for AUPRO."""


def heat_maps(method: Method, images: np.ndarray, kind: Kind = "gradient", batch_size: int = 8) -> Maps | None:
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


def some_heat_maps(method: Method, images: np.ndarray, kind: Kind) -> Maps:
    """As `heat_maps`; of the other kind where the method has none of this one, and flat where it has neither."""
    for each in dict.fromkeys((kind, *KINDS)):
        maps = heat_maps(method, images, each)
        if maps is not None:
            return maps
    return np.zeros(images.shape[:3], np.float32)


def scaled(maps: Maps) -> Maps:
    """Each map [S, S] of [N, S, S] stretched to [0, 1] for a picture; a constant one becomes 0."""
    stretched, flat = min_max(torch.from_numpy(maps)[:, None])
    stretched[flat] = 0
    return stretched[:, 0].numpy()


def aupro(masks: NDArray[np.bool_], maps: Maps, limit: float = PRO_LIMIT, steps: int = 200) -> float:
    """Area under the per-region overlap, up to a false-positive rate of `limit`, divided by it: in [0, 1].

    masks [N, S, S]: defect pixels, none in normal images; maps [N, S, S]. Each connected defect counts equally
    (Bergmann et al. 2020). Raises DataError where no mask marks anything, or everything.
    """
    truth = np.asarray(masks, dtype=bool)
    if not truth.any() or truth.all():
        raise DataError("AUPRO needs masks that mark some pixels and leave others")
    normal = np.sort(maps[~truth])
    # thresholds at even steps of the false-positive rate, from none to `limit`
    rates = np.linspace(0, limit, steps + 1)
    ranks = np.clip(np.ceil((1 - rates) * len(normal)).astype(int), 1, len(normal)) - 1
    cuts = normal[ranks]
    overlaps = []
    for mask, values in zip(truth, maps, strict=True):
        regions, number = ndimage.label(mask, structure=np.ones((3, 3), int))
        for region in range(1, number + 1):
            ordered = np.sort(values[regions == region])
            overlaps.append(1 - np.searchsorted(ordered, cuts, side="right") / len(ordered))
    return float(np.trapezoid(np.mean(overlaps, axis=0), rates) / limit)
