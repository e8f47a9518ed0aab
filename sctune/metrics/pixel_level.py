"""Pixel-level metrics: how well heat maps mark the defects of masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sctune.errors import DataError

PRO_LIMIT = 0.3
"""False-positive rate up to which the per-region overlap is integrated, as usual for AUPRO."""


def aupro(masks: NDArray[np.bool_], maps: NDArray[np.float32], limit: float = PRO_LIMIT, steps: int = 200) -> float:
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
