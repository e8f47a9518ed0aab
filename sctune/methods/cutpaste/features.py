"""Features of images through the trunk as it is; what its frozen blocks made of images is kept for the next time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sctune.config import TrialConfig
from sctune.methods.cutpaste.network import Trunk
from sctune.methods.pixels import autocast, normalise, to_pixels
from sctune.methods.room import Share, room_of
from sctune.methods.untrained.reference import Ask, Images

MAX_BYTES = 2**28
"""Most memory of the kept maps of all images; what is beyond it is computed again."""


class Features:
    """Looks at images; those that are named to be kept must not change between two calls."""

    def __init__(self, config: TrialConfig, trunk: Trunk, device: torch.device) -> None:
        self.config = config
        self.trunk = trunk
        self.device = device
        self._kept: dict[int, tuple[Images, list[Tensor]]] = {}
        self._share = Share(MAX_BYTES, room_of(device))

    def walk(self, images: Images, size: int, keep: bool = False, ask: Ask = lambda: None) -> Iterator[Tensor]:
        """Features [n, C] of uint8 images [N, S, S, 3], `size` at a time, on the device."""
        kept = self._kept.setdefault(id(images), (images, []))[1] if keep else []
        for number, start in enumerate(range(0, len(images), size)):
            ask()
            with self.trunk.scoring(), autocast(self.config.runtime, self.device):
                if number < len(kept):
                    half = kept[number]
                else:
                    half = self.trunk.backbone.frozen(self._normalised(images[start : start + size]))
                    if keep and number == len(kept):
                        self._keep(kept, half)
                found = self.trunk.described(self.trunk.backbone.after_frozen(half))
            yield found

    def _keep(self, kept: list[Tensor], half: Tensor) -> None:
        # of no frozen block it would be the image itself
        if self.trunk.backbone.kept and self._share.take(half.nbytes):
            kept.append(half)

    def _normalised(self, images: np.ndarray) -> Tensor:
        return normalise(to_pixels(images, self.device, self.config.runtime.channels_last))
