"""The source's maps of images, which never change: made once, and kept in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctune.methods.base import TaskImages

Look = Callable[[np.ndarray], NDArray[np.float32]]
"""uint8 images [N, S, S, 3] -> the source's maps [N, D], those of an image the same whatever stands beside it."""


class KeptMaps:
    """Rows of the training normals in half precision, by their place; the first `room` of them are kept.

    Others are made anew each time and rounded alike, so the room changes nothing but the time. dimension: of a row;
    limit: bytes.
    """

    def __init__(self, look: Look, images: TaskImages, dimension: int, limit: int) -> None:
        self._look = look
        self._images = images
        self.room = min(len(images.normals), limit // (dimension * 2))
        # pages of memory are taken when they are written to
        self._rows = np.empty((self.room, dimension), np.float16)
        self._held = np.zeros(len(images.normals), bool)

    @property
    def held(self) -> int:
        """How many are kept by now."""
        return int(self._held.sum())

    def of(self, places: NDArray[np.intp]) -> Tensor:
        """Rows [N, D], half, of the normals at these places (0 for the first one)."""
        missing = np.unique(places[~self._held[places]])
        made = dict(zip(missing.tolist(), self._made(missing), strict=True)) if len(missing) else {}
        for place, row in made.items():
            if place < self.room:
                self._rows[place] = row
                self._held[place] = True
        rows = [made[place] if place in made else self._rows[place] for place in places.tolist()]
        return torch.from_numpy(np.stack(rows))

    def _made(self, places: NDArray[np.intp]) -> NDArray[np.float16]:
        return self._look(self._images.take(self._images.normals[places])).astype(np.float16)


class KeptRows:
    """Rows [N, D] of whole arrays of images that are asked for again and again; an array must not change.

    dimension: of a row; limit: bytes of all together.
    """

    def __init__(self, look: Look, dimension: int, limit: int) -> None:
        self._look = look
        self._dimension = dimension
        self._left = limit
        self._kept: dict[int, tuple[np.ndarray, NDArray[np.float32]]] = {}

    def of(self, images: np.ndarray) -> NDArray[np.float32] | None:
        """Their rows; None, and nothing is looked at, where these find no room."""
        known = self._kept.get(id(images))
        if known is not None and known[0] is images:
            return known[1]
        size = len(images) * self._dimension * 4
        if size > self._left:
            return None
        self._left -= size
        rows = self._look(images)
        self._kept[id(images)] = images, rows
        return rows
