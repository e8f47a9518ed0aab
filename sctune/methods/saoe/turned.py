"""In which quarter turns normal images do not look normal: only there is a turned one an anomaly to learn from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from sctune.errors import DataError
from sctune.methods.density import distances, fit_gaussian
from sctune.metrics.delong import Placements

TURNS = (1, 2, 3)
"""Quarters, counter-clockwise (CSI, Tack et al., NeurIPS 2020)."""
LIMIT = 0.6
"""AUROC of turned against upright normal images from which on they look different, as `sctune data changes` has it."""
LEAST = 15
"""Held-out normal images; of fewer nothing can be said."""
Z = 1.96
"""Half the width of a 95 % interval, in standard errors."""

Features = NDArray[np.float32]


def unlike_turns(fitted: Features, held: Features, turned: Mapping[int, Features]) -> tuple[int, ...]:
    """Turns in which held-out normal images lie farther from fitted ones than as they are.

    fitted, held: features [N, D] and [M, D] of different normal images; turned: turn -> those [M, D] of the held-out
    ones turned. A Gaussian is fitted to the first; a turn counts where the AUROC of turned against upright images by
    their distance is LIMIT at least, and surely above one half. Empty where M is below LEAST, or all are alike.
    """
    if len(held) < LEAST:
        return ()
    try:
        density, _ = fit_gaussian(fitted.astype(np.float64))
    except DataError:
        return ()

    def away(features: Features) -> NDArray[np.float64]:
        return np.asarray(distances(density(torch.from_numpy(features))).numpy(), dtype=np.float64)

    upright, found = away(held), []
    for turn, features in turned.items():
        labels = np.repeat([0, 1], [len(held), len(features)])
        places = Placements.of(labels, np.concatenate([upright, away(features)]))
        if places.auroc >= LIMIT and places.auroc - Z * places.error > 0.5:
            found.append(turn)
    return tuple(found)
