"""What can be said of an image without a model: measured once, while it is decoded, and kept with its pixels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sctune.data.decode import Decoded

THUMB = 64
"""Side of the small grey picture that is kept of each image; near copies are found by it."""
HASH_SIDE = 16
SAMPLE = 64
LEVELS, SQUARES = np.arange(256.0), np.arange(256.0) ** 2


@dataclass(frozen=True)
class ImageFacts:
    """kind: file format and mode; depth: bits of a stored number; width, height: upright, in pixels; nbytes: file size.

    quality: of a JPEG, 1 to 100, 0 for other formats. mean, deviation: of the grey levels 0 .. 255 as the model takes
    them; black, white: share of the pixels at 0 and at 255; sharpness: variance of the Laplacian, grey levels squared;
    thumb: the grey picture, uint8 [THUMB, THUMB]; notes: what decoding flagged.
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
    thumb: NDArray[np.uint8]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All but the small picture."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "thumb"}

    @staticmethod
    def from_dict(content: dict[str, Any], thumb: NDArray[np.uint8]) -> ImageFacts:
        """Raises TypeError or KeyError for a damaged record."""
        return ImageFacts(**content | {"notes": tuple(content["notes"]), "thumb": thumb})


def measure(decoded: Decoded, nbytes: int) -> ImageFacts:
    """nbytes: size of the file."""
    grey = _grey(decoded.pixels)
    counts = np.bincount(grey.reshape(-1), minlength=256)
    mean = float(counts @ LEVELS) / grey.size
    variance = max(0.0, float(counts @ SQUARES) / grey.size - mean**2)
    return ImageFacts(
        kind=decoded.kind,
        depth=decoded.depth,
        width=decoded.width,
        height=decoded.height,
        nbytes=nbytes,
        quality=decoded.quality or 0.0,
        mean=round(mean, 3),
        deviation=round(variance**0.5, 3),
        black=round(int(counts[0]) / grey.size, 4),
        white=round(int(counts[255]) / grey.size, 4),
        sharpness=round(_sharpness(decoded.pixels), 3),
        thumb=_thumb(decoded.pixels),
        notes=decoded.notes,
    )


Found = dict[str, ImageFacts | str]
"""Path -> what was measured, or why the image cannot be decoded."""


def write_facts(place: Path, found: Mapping[str, ImageFacts | str]) -> None:
    """Replace a file at once; several processes may do so. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    content = {path: one if isinstance(one, str) else one.to_dict() for path, one in found.items()}
    thumbs = [one.thumb for one in found.values() if isinstance(one, ImageFacts)]
    stack = np.stack(thumbs) if thumbs else np.zeros((0, THUMB, THUMB), np.uint8)
    staged = place.with_name(f"{place.stem}.{os.getpid()}.npy")
    # the pictures first: facts without them are not read
    np.save(staged, stack)
    os.replace(staged, place.with_suffix(".npy"))
    staged.write_text(json.dumps(content), encoding="utf-8")
    os.replace(staged, place)


def read_facts(place: Path) -> Found | None:
    """What `write_facts` wrote; None where there is nothing, or it is damaged or of another version."""
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        thumbs = np.load(place.with_suffix(".npy"), mmap_mode="r")
        measured = sum(not isinstance(one, str) for one in content.values())
        if thumbs.shape != (measured, THUMB, THUMB) or thumbs.dtype != np.uint8:
            return None
        rows = iter(thumbs)
        return {
            path: one if isinstance(one, str) else ImageFacts.from_dict(one, next(rows))
            for path, one in content.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def difference_hashes(thumbs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, 32] of small pictures [N, THUMB, THUMB]: whether each of 16 x 16 cells is brighter than the one before."""
    side = THUMB // HASH_SIDE
    cells = thumbs.reshape(len(thumbs), HASH_SIDE, side, HASH_SIDE, side).sum(axis=(2, 4), dtype=np.int32)
    return np.packbits((cells > np.roll(cells, 1, axis=2)).reshape(len(thumbs), -1), axis=1)


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every k-th pixel's green, at most SAMPLE a side: looking at all of them would cost as much as decoding."""
    step = -(-len(pixels) // SAMPLE)
    return np.ascontiguousarray(pixels[::step, ::step, 1])


def _sharpness(pixels: NDArray[np.uint8]) -> float:
    """Of the middle of the picture, where neighbours are neighbours."""
    start = max(0, (len(pixels) - SAMPLE) // 2)
    wide = pixels[start : start + SAMPLE, start : start + SAMPLE, 1].astype(np.int16)
    edges = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] - 4 * wide[1:-1, 1:-1]
    flat = edges.reshape(-1).astype(np.float32)
    return float(flat @ flat) / flat.size - float(flat.mean()) ** 2


def _thumb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    whole = Image.fromarray(np.ascontiguousarray(pixels[..., 1]))
    factor = len(pixels) // THUMB
    # the mean of whole cells first, which is quick
    small = whole.reduce(factor) if factor > 1 else whole
    return np.asarray(small.resize((THUMB, THUMB), Image.Resampling.BOX))
