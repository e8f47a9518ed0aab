"""Heat maps as KDAD makes them: the gradient of its score by the pixels, smoothed and opened (section 3.3)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from torch import Tensor

from sctune.methods.base import Maps

SIGMA = 1 / 32
"""Of the smoothing, as a share of the side: 4 pixels of 128."""
OPENING = 1 / 64
"""Half a side of the square that the map is opened by, as a share of the side; its size is ours."""


def opened(gradient: Tensor) -> Maps:
    """Maps [N, S, S] of gradients [N, 3, S, S]: their sizes, added up over the colours, without narrow peaks."""
    grey = gradient.abs().sum(dim=1).float().cpu().numpy()
    side = grey.shape[-1]
    width = 2 * max(1, round(side * OPENING)) + 1
    maps = [ndimage.grey_opening(ndimage.gaussian_filter(one, side * SIGMA), (width, width)) for one in grey]
    return np.stack(maps).astype(np.float32)
