"""What a trained method makes of single images: its own views of them, its saliency, and both kinds of heat map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sctune.methods.base import Maps, Method, Scores


@dataclass(frozen=True)
class Views:
    """Of images uint8 [N, S, S, 3] their scores [N], and what they are seen as by the way, by name.

    made: pictures uint8 [N, s, s, 3], or maps [N, s, s] in [0, 1]; cells, gradients: heat maps [N, S, S], None where
    the method has none of that kind. Values of `cells` can be compared between images, those of `gradients` cannot.
    """

    images: np.ndarray
    scores: Scores
    made: dict[str, np.ndarray]
    cells: Maps | None
    gradients: Maps | None


def views_of(method: Method, images: np.ndarray) -> Views:
    """A few images uint8 [N, S, S, 3] through a trained method."""
    saliency = method.saliency(images)
    made = method.views(images) | ({} if saliency is None else {"saliency": saliency})
    return Views(images, method.score(images), made, method.cells(images), method.gradients(images))
