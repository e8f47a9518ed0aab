"""Forms of a detector that only score: one that is asked again and again, and one that other programs carry."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from sctune.methods.deviation.detector import Detector
from sctune.methods.pixels import normalise
from sctune.methods.room import Share, room_of

MAX_BYTES = 2**28
"""Most memory of all kept feature maps."""


class RepeatedScorer:
    """Scores images as `Detector.score_images` does, bit for bit.

    Frozen blocks give the same maps in every epoch; these are kept for each array of images that is scored, up to
    MAX_BYTES where there is room. An array must not change between two calls.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self._kept: dict[int, tuple[np.ndarray, list[list[Tensor]] | None]] = {}
        self._share = Share(MAX_BYTES, room_of(next(detector.parameters()).device))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Scores [N] (float64) of uint8 images [N, S, S, 3]."""
        if self.detector.backbone.freeze == 0 or not len(images):
            return self.detector.score_images(images)
        known, maps = self._kept.get(id(images), (None, None))
        if known is not images:
            maps = self.detector.frozen_maps(images, self._share.left)
            if maps is not None and not self._share.take(sum(level.nbytes for batch in maps for level in batch)):
                maps = None
            self._kept[id(images)] = images, maps
        return self.detector.score_images(images) if maps is None else self.detector.score_maps(maps)


class PixelScore(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> scores [N]: a copy on the CPU; maps of reference images are computed once."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        own = copy.deepcopy(detector).cpu().to(memory_format=torch.contiguous_format).eval()
        own.requires_grad_(False)
        self.detector = own
        with torch.no_grad():
            maps = own.turned_references() or []
        self.names = [f"reference_{scale}" for scale in range(len(maps))]
        for name, level in zip(self.names, maps, strict=True):
            self.register_buffer(name, level)

    @property
    def references(self) -> list[Tensor] | None:
        """As `Detector.turned_references` gives them."""
        return [self.get_buffer(name) for name in self.names] or None

    def forward(self, pixels: Tensor) -> Tensor:
        return self.detector.anomaly_score(normalise(pixels), self.references)
