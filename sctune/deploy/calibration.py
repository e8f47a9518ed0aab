"""What a model keeps of its calibration images: the normal images of no fit, which later images are compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sctune.data.decode import Decoding, decode
from sctune.errors import CheckpointError, NonFiniteError

FORMAT_VERSION = 1
MEASURES = ("brightness", "contrast", "width", "height")


@dataclass(frozen=True)
class Prepared:
    """An image as the model takes it, uint8 [S, S, 3], and what can be said of it without a model.

    brightness, contrast: mean and standard deviation of the pixels in 0 .. 255, as the model takes them; width, height:
    of the upright image itself, in pixels; notes: what decoding flagged, one line each.
    """

    pixels: NDArray[np.uint8]
    brightness: float
    contrast: float
    width: int
    height: int
    notes: tuple[str, ...] = ()

    @property
    def measures(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in MEASURES}

    @property
    def note(self) -> str | None:
        """All notes on one line, None where there are none."""
        return "; ".join(self.notes) or None


def prepare_image(source: Path | bytes, decoding: Decoding) -> Prepared:
    """Decode one image; raises DataError for bytes that are no image (data/decode.py)."""
    decoded = decode(source, decoding)
    pixels = decoded.pixels
    return Prepared(pixels, float(pixels.mean()), float(pixels.std()), decoded.width, decoded.height, decoded.notes)


@dataclass(frozen=True)
class Calibration:
    """Scores and measures of the calibration images, all lists of the same length, in one order.

    source: where they come from, in words.
    """

    source: str
    scores: tuple[float, ...]
    brightness: tuple[float, ...]
    contrast: tuple[float, ...]
    width: tuple[float, ...]
    height: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def of(source: str, scores: Sequence[float], images: Sequence[Prepared]) -> Calibration:
        """Raises NonFiniteError for a score that is no finite number."""
        if not np.isfinite(scores).all():
            raise NonFiniteError("a score of the calibration images is no finite number")
        columns = {name: tuple(float(getattr(image, name)) for image in images) for name in MEASURES}
        return Calibration(source, tuple(map(float, scores)), **columns)

    def write(self, path: Path) -> None:
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        path.write_text(json.dumps(content, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Calibration | None:
        """None where a model has none; raises CheckpointError for a damaged file or one of a newer sctune."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return _calibration(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise CheckpointError(f"cannot read {path} of the model: {problem}") from None


def _calibration(content: Mapping[str, Any]) -> Calibration:
    if content["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"the calibration has format {content['format_version']}, this sctune reads 1; update it")
    columns = {name: tuple(map(float, content[name])) for name in ("scores", *MEASURES)}
    if len({len(column) for column in columns.values()}) != 1:
        raise ValueError("its columns are not of one length")
    return Calibration(str(content["source"]), **columns)
