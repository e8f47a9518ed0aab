"""What can be said of an image without a model: measured once, while it is decoded, and kept with its pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sctune.data.decode import Decoded
from sctune.files import whole_file

FINEST = 64
"""Fewest cells a side of the fine picture that sharpness is told from; `thumb` has half as many a side."""
HASH_SIDE = 16
SAMPLE = 64
AT_ONCE, PIXELS = 16, 2**20
"""Images measured together: a call of numpy costs as much as its work on one, and more do not fit into a cache.

Of large ones fewer: so many pixels."""
NO_DETAIL = 1e-3
"""Added to both sides of `fineness`, in grey levels squared, so that constant pictures have one."""
Stack = NDArray[np.uint8]
"""Grey pictures [N, S, S] of one size."""


class ImageFacts(NamedTuple):
    """kind: file format and mode; depth: bits of a stored number; width, height: upright, in pixels; nbytes: file size.

    quality: of a JPEG, 1 to 100, 0 for other formats. mean, deviation: of the grey levels 0 .. 255 as the model takes
    them; black, white: share of the pixels at 0 and at 255; sharpness: mean squared difference of neighbouring cells
    (F to 2 F of them a side, F = FINEST; pixels of smaller images), grey levels squared; fineness: sharpness over that
    of cells twice as wide, 1/4 where there is no fine detail, 4 for noise alone, whatever the contrast; thumb: the grey
    picture, uint8 [T, T], T from F/2 to F (half of smaller images); notes: what decoding flagged.
    """

    kind: str
    depth: str
    width: int
    height: int
    nbytes: int
    quality: float
    mean: float
    deviation: float
    black: float
    white: float
    sharpness: float
    fineness: float
    thumb: NDArray[np.uint8]
    notes: tuple[str, ...] = ()


STORED = [name for name in ImageFacts._fields if name != "thumb"]


def measure(images: Sequence[Decoded]) -> list[ImageFacts]:
    """The facts of images of one size, in their order."""
    if not images:
        return []
    # memory that is used again: the system takes longer to give it than all that is done with it
    shape = images[0].pixels.shape[:2]
    count = max(1, min(AT_ONCE, PIXELS // (shape[0] * shape[1])))
    room, rows = np.empty((count, *shape), np.uint8), np.empty((count, *shape), np.uint16)
    groups = (images[start : start + count] for start in range(0, len(images), count))
    return [one for group in groups for one in _measure(group, room[: len(group)], rows[: len(group)])]


def _measure(images: Sequence[Decoded], room: Stack, rows: NDArray[np.uint16]) -> list[ImageFacts]:
    """room, rows: [N, S, S] for N images of S x S pixels, overwritten."""
    grey = np.stack([one.pixels[..., 1] for one in images], out=room)
    fine = _cells(grey, max(1, grey.shape[1] // FINEST), rows)
    wide = _halved(fine)
    sharpness, wider = _roughness(fine), _roughness(wide)
    measured = (*_levels(grey), sharpness, (sharpness + NO_DETAIL) / (wider + NO_DETAIL))
    columns = (np.round(values, 4).tolist() for values in measured)
    found = zip(images, np.rint(wide).astype(np.uint8), *columns, strict=True)
    return [
        ImageFacts._make(
            (one.kind, one.depth, one.width, one.height, one.nbytes, one.quality or 0.0, *numbers, thumb, one.notes)
        )
        for one, thumb, *numbers in found
    ]


Found = dict[str, ImageFacts | str]
"""Path -> what was measured, or why the image cannot be decoded."""


def write_facts(place: Path, found: Mapping[str, ImageFacts | str]) -> None:
    """Replace a file at once; several processes may do so. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    row = attrgetter(*STORED)
    rows = {path: one if isinstance(one, str) else row(one) for path, one in found.items()}
    content = {"names": STORED, "rows": rows}
    thumbs = [one.thumb for one in found.values() if isinstance(one, ImageFacts)]
    stack = np.stack(thumbs) if thumbs else np.zeros((0, 1, 1), np.uint8)
    # the pictures first: facts without them are not read
    with whole_file(place.with_suffix(".npy")) as staged:
        np.save(staged, stack)
    with whole_file(place) as staged:
        staged.write_text(json.dumps(content), encoding="utf-8")


def read_facts(place: Path) -> Found | None:
    """What `write_facts` wrote; None where there is nothing, or it is damaged or of another version."""
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        # rows of a mapping cost far more than rows of an array
        thumbs = np.load(place.with_suffix(".npy"))
        rows = content["rows"]
        measured = sum(not isinstance(one, str) for one in rows.values())
        if content["names"] != STORED or thumbs.shape != (measured, *thumbs.shape[1:2] * 2) or thumbs.dtype != np.uint8:
            return None
        pictures = iter(thumbs)
        return {path: one if isinstance(one, str) else _fact(one, next(pictures)) for path, one in rows.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _fact(row: list[Any], thumb: NDArray[np.uint8]) -> ImageFacts:
    *values, notes = row
    return ImageFacts._make([*values, thumb, tuple(notes)])


def difference_hashes(thumbs: Stack) -> NDArray[np.uint64]:
    """[N, 4] of small pictures [N, T, T]: whether each of 16 x 16 cells is brighter than the one before, 256 bits."""
    weights = _overlaps(thumbs.shape[1])
    cells = weights @ (thumbs.astype(np.float32) @ weights.T)
    # equal areas must give equal numbers, wherever they lie
    cells = np.rint(cells * 16)
    return np.packbits((cells > np.roll(cells, 1, axis=2)).reshape(len(thumbs), -1), axis=1).view(np.uint64)


def _overlaps(side: int) -> NDArray[np.float32]:
    """[HASH_SIDE, side]: how much of each of HASH_SIDE equal parts of a line lies on each of its `side` pixels."""
    ends = np.arange(HASH_SIDE + 1) * side / HASH_SIDE
    pixels = np.arange(side)
    shared = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    return (np.maximum(shared, 0) * HASH_SIDE / side).astype(np.float32)


def _levels(grey: Stack) -> tuple[NDArray[Any], ...]:
    """Mean, deviation, share of black and of white, each [N], of every k-th pixel, at most SAMPLE a side.

    Looking at all of them would cost as much as decoding.
    """
    step = -(-grey.shape[1] // SAMPLE)
    some = grey[:, ::step, ::step].reshape(len(grey), -1)
    ones = np.ones(some.shape[1], np.float32)
    # sums of whole numbers, which 32 bits hold: a constant picture has a deviation of 0
    values = some.astype(np.float32)
    mean = values @ ones / ones.size
    values -= mean[:, None]
    deviation = np.sqrt(np.einsum("ij,ij->i", values, values) / ones.size)
    black, white = ((some == end).astype(np.float32) @ ones / ones.size for end in (0, 255))
    return mean, deviation, black, white


def _cells(grey: Stack, side: int, room: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Means [N, S // side, S // side] of whole cells of pictures [N, S, S]; room: as large, overwritten."""
    count = grey.shape[1] // side
    whole = grey[:, : count * side, : count * side]
    rows = room[:, :count, : count * side]
    np.copyto(rows, whole[:, ::side])
    for start in range(1, side):
        rows += whole[:, start::side]
    # sums of up to 257 grey levels fit into 16 bits
    sums: NDArray[Any] = rows[..., ::side].astype(np.uint16 if side <= 16 else np.uint32)
    for start in range(1, side):
        sums += rows[..., start::side]
    return np.multiply(sums, 1 / side**2, dtype=np.float32)


def _halved(fine: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, S // 2, S // 2]"""
    whole = fine[:, : fine.shape[1] // 2 * 2, : fine.shape[2] // 2 * 2]
    rows = whole[:, ::2] + whole[:, 1::2]
    return np.asarray((rows[..., ::2] + rows[..., 1::2]) / 4, np.float32)


def _roughness(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean squared difference of neighbours, both ways, in the middle of pictures [N, S, S].

    Borders that `pad` adds would be the sharpest edges of a blurred image.
    """
    edge = grey.shape[1] // 8
    middle = grey[:, edge : grey.shape[1] - edge, edge : grey.shape[1] - edge]
    steps = (np.diff(middle, axis=axis) for axis in (1, 2))
    return np.asarray(sum(np.einsum("nij,nij->n", one, one) / one[0].size for one in steps), np.float32)
