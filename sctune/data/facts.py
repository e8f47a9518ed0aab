"""What can be said of an image without a model: measured once, while it is decoded, and kept with its pixels."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sctune.data.decode import Decoded

HASH_SIDE = 16
"""The perceptual hash has this many bits squared."""
SAMPLE = 80
LEVELS, SQUARES = np.arange(256.0), np.arange(256.0) ** 2


@dataclass(frozen=True)
class ImageFacts:
    """kind: file format and mode; depth: bits of a stored number; width, height: upright, in pixels; nbytes: file size.

    quality: of a JPEG, 1 to 100, 0 for other formats. mean, deviation: of the grey levels 0 .. 255 as the model takes
    them; black, white: share of the pixels at 0 and at 255; sharpness: variance of the Laplacian, grey levels squared;
    fingerprint: difference hash of the grey picture, 256 bits as 64 hexadecimal digits; notes: what decoding flagged.
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
    fingerprint: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, Any]) -> ImageFacts:
        """Raises TypeError or KeyError for a damaged record."""
        return ImageFacts(**content | {"notes": tuple(content["notes"])})


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
        fingerprint=_fingerprint(grey),
        notes=decoded.notes,
    )


Found = dict[str, ImageFacts | str]
"""Path -> what was measured, or why the image cannot be decoded."""


def write_facts(place: Path, found: Mapping[str, ImageFacts | str]) -> None:
    """Replace a file at once; several processes may do so. Raises OSError."""
    place.parent.mkdir(parents=True, exist_ok=True)
    staged = place.with_name(f"{place.name}.{os.getpid()}")
    content = {path: one if isinstance(one, str) else one.to_dict() for path, one in found.items()}
    staged.write_text(json.dumps(content), encoding="utf-8")
    os.replace(staged, place)


def read_facts(place: Path) -> Found | None:
    """What `write_facts` wrote; None where there is nothing, or it is damaged or of another version."""
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        return {path: one if isinstance(one, str) else ImageFacts.from_dict(one) for path, one in content.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def hash_bits(fingerprints: list[str]) -> NDArray[np.uint8]:
    """[N, 32]: the hashes as bytes."""
    raw = b"".join(bytes.fromhex(text) for text in fingerprints)
    return np.frombuffer(raw, np.uint8).reshape(len(fingerprints), HASH_SIDE**2 // 8)


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Every k-th pixel's green, at most twice SAMPLE a side: looking at all of them would cost as much as decoding."""
    step = max(1, len(pixels) // SAMPLE)
    return np.ascontiguousarray(pixels[::step, ::step, 1])


def _sharpness(pixels: NDArray[np.uint8]) -> float:
    """Of the middle of the picture, where neighbours are neighbours."""
    start = max(0, (len(pixels) - SAMPLE) // 2)
    wide = pixels[start : start + SAMPLE, start : start + SAMPLE, 1].astype(np.int16)
    edges = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] - 4 * wide[1:-1, 1:-1]
    flat = edges.reshape(-1).astype(np.float32)
    return float(flat @ flat) / flat.size - float(flat.mean()) ** 2


def _fingerprint(grey: NDArray[np.uint8]) -> str:
    small = Image.fromarray(grey).resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    cells = np.asarray(small)
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes().hex()
