"""A detector as one module from pixels to scores: what other programs carry."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sctune.methods.deviation.detector import Detector
from sctune.methods.pixels import normalise


class PixelScore(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> scores [N]: a copy on the CPU; maps of reference images are computed once."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        own = copy.deepcopy(detector).cpu().to(memory_format=torch.contiguous_format).eval()
        own.requires_grad_(False)
        self.detector = own
        with torch.no_grad():
            maps = own.reference_maps() if own.needs_references else []
        self.names = [f"reference_{scale}" for scale in range(len(maps))]
        for name, level in zip(self.names, maps, strict=True):
            self.register_buffer(name, level)

    def forward(self, pixels: Tensor) -> Tensor:
        references = [self.get_buffer(name) for name in self.names] or None
        return self.detector.anomaly_score(normalise(pixels), references)
