"""The source's maps of images, which never change: made once, and kept in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctune.errors import NonFiniteError
from sctune.methods.base import TaskImages
from sctune.methods.room import Share

Look = Callable[[np.ndarray], NDArray[np.float32]]
"""uint8 images [N, S, S, 3] -> the source's maps [N, D], those of an image the same whatever stands beside it."""
SPARE = 2**28
"""Bytes of the process that are left to what is kept later, of images that are scored after every epoch."""
AT_ONCE = 32
"""Images of one look where many are looked at, so that their maps stand in memory only once."""


class KeptMaps:
    """Rows of the training normals in half precision, by their place; the first `room` of them are kept.

    These are as many as the limit and the room of the process allow. Others are made anew each time and rounded alike,
    so the room changes nothing but the time. dimension: of a row; limit: bytes; source: the backbone's name. Raises
    NonFiniteError for maps that half precision cannot hold.
    """

    def __init__(self, look: Look, images: TaskImages, dimension: int, limit: int, source: str) -> None:
        self._look = look
        self._source = source
        self._images = images
        self._share = Share(limit, spare=SPARE)
        self.room = min(len(images.normals), self._share.left // (dimension * 2))
        self._share.take(self.room * dimension * 2)
        # pages of memory are taken when they are written to
        self._rows = np.empty((self.room, dimension), np.float16)
        self._held = np.zeros(len(images.normals), bool)

    @property
    def held(self) -> int:
        """How many are kept by now."""
        return int(self._held.sum())

    def take_room(self) -> None:
        """Take the memory of all rows now, as a whole training does; what is held stays."""
        self._rows[~self._held[: self.room]] = 0

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
        with np.errstate(over="ignore"):
            made = self._look(self._images.take(self._images.normals[places])).astype(np.float16)
        if not np.isfinite(made).all():
            raise NonFiniteError(
                f"{self._source} gives normal images maps that are no numbers of half precision (65504 at most), which "
                "kdad keeps them in; use other model.weights, or another model.backbone"
            )
        return made


class KeptRows:
    """The first rows, as many as find room, of arrays of images that are asked for again and again.

    The arrays must not change. dimension: of a row; limit: bytes of all together.
    """

    def __init__(self, look: Look, dimension: int, limit: int) -> None:
        self._look = look
        self._dimension = dimension
        self._share = Share(limit)
        self._kept: dict[int, tuple[np.ndarray, NDArray[np.float32]]] = {}

    def of(self, images: np.ndarray) -> NDArray[np.float32]:
        """Rows [n, D] of the first n of them, n from 0 to all; these alone are looked at, once."""
        # what is kept is not freed, so no other array has its id
        if id(images) not in self._kept:
            count = min(len(images), self._share.left // (self._dimension * 4))
            rows = np.empty((count, self._dimension), np.float32)
            for start in range(0, count, AT_ONCE):
                rows[start : start + AT_ONCE] = self._look(images[start : min(start + AT_ONCE, count)])
            self._share.take(rows.nbytes)
            self._kept[id(images)] = images, rows
        return self._kept[id(images)][1]
