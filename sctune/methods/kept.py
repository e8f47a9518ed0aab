"""What frozen blocks make of images that are looked at after every epoch: the same each time, so it is kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sctune.methods.room import Share, room_of

MAX_BYTES = 2**28
"""Most memory of all kept maps."""
CPU = torch.device("cpu")


class KeptMaps:
    """Maps of batches of images, up to max_bytes together where there is room; others are made again each time.

    Images are known by an object that stands for them, such as their array. It must not change, and what stands for
    them is always cut into the same batches. device: where the maps are.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, device: torch.device = CPU) -> None:
        self._share = Share(max_bytes, room_of(device))
        self._maps: dict[tuple[int, int], Tensor] = {}
        # as long as an object is held, no other one has its number
        self._held: dict[int, object] = {}

    def of(self, images: object, batch: int, make: Callable[[], Tensor | None]) -> Tensor | None:
        """What `make` gives for batch number `batch`, asked where it is not kept; None is never kept."""
        key = id(images), batch
        if key in self._maps:
            return self._maps[key]
        maps = make()
        if maps is not None and self._share.take(maps.nbytes):
            self._maps[key], self._held[id(images)] = maps, images
        return maps
