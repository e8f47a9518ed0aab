"""Scoring the same images after every epoch without running the frozen blocks of the backbone again."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from sctune.methods.deviation.detector import Detector

MAX_BYTES = 2**28
"""Most memory that the kept feature maps of one set of images may take."""


class RepeatedScorer:
    """Scores images as `Detector.score_images` does, bit for bit.

    Frozen blocks give the same maps in every epoch; these are kept for each array of images that is scored, up to
    MAX_BYTES. An array must not change between two calls.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._kept: dict[int, tuple[np.ndarray, list[list[Tensor]] | None]] = {}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Scores [N] (float64) of uint8 images [N, S, S, 3]."""
        if self.detector.backbone.freeze == 0 or not len(images):
            return self.detector.score_images(images)
        known, maps = self._kept.get(id(images), (None, None))
        if known is not images:
            maps = self.detector.frozen_maps(images, MAX_BYTES)
            self._kept[id(images)] = images, maps
        return self.detector.score_images(images) if maps is None else self.detector.score_maps(maps)
