"""What MLflow calls to load a model: its folder in (deploy/model.py), a scorer of encoded images out."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sctune.deploy.calibration import Prepared
from sctune.deploy.incoming import bytes_of_text, error_line, prepared, scores
from sctune.deploy.model import Model, heat_map_png, load_model_folder
from sctune.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

LOADER_MODULE = "sctune.deploy.flavor"
IMAGE_COLUMN = "image"
SCORE_COLUMN = "score"
LABEL_COLUMN = "label"
ERROR_COLUMN = "error"
HEAT_COLUMN = "heat_map"
NOTE_COLUMN = "note"
HEAT_PARAM = "heat_map"
_BATCH = 32


class ImageScorer:
    """Scores encoded images; higher is more anomalous. meta: what is known about the model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.meta = model.meta

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """A row for each image, given as bytes or base64 text, in their order.

        Columns: score (float64), label (`normal`, `anomalous` or None), error (None, or one line that begins with the
        row where the image has no score; then score is NaN and label None), note (None, or what decoding flagged).
        model_input: a DataFrame or dict with the column `image`, or a list or array of images. params: heat_map=True
        adds the column heat_map, a PNG as base64, before note. Raises DataError where there is no such column, and for
        a parameter that is not known.
        """
        from sctune.deploy.answer import Answer

        wanted = dict(params or {})
        with_heat = bool(wanted.pop(HEAT_PARAM, False))
        if wanted:
            raise DataError(f"unknown parameters {sorted(wanted)}; the model takes images and {HEAT_PARAM}")
        images = _images(model_input)
        # decoded batch by batch, so that memory does not grow with the request
        parts = [self._part(images, start, with_heat) for start in range(0, len(images), _BATCH)]
        # the note came last to these columns, so that the others keep their places
        names = [SCORE_COLUMN, LABEL_COLUMN, ERROR_COLUMN, *([HEAT_COLUMN] if with_heat else []), NOTE_COLUMN]
        return Answer.of({name: [value for part in parts for value in part[name]] for name in names}, SCORE_COLUMN)

    def _part(self, images: Sequence[Any], start: int, with_heat: bool) -> dict[str, list[Any]]:
        rows = range(start, min(start + _BATCH, len(images)))
        found = [self._prepared(images[row], f"row {row}") for row in rows]
        good = [row for row, image in zip(rows, found, strict=True) if not isinstance(image, str)]
        taken = [image for image in found if not isinstance(image, str)]
        values = dict(zip(good, scores(self.model, taken, [f"row {row}" for row in good]), strict=True))
        values |= {row: image for row, image in zip(rows, found, strict=True) if isinstance(image, str)}
        answers = [values[row] for row in rows]
        part: dict[str, list[Any]] = {
            SCORE_COLUMN: [math.nan if isinstance(each, str) else each for each in answers],
            LABEL_COLUMN: [None if isinstance(each, str) else self.model.labels(each)[0] for each in answers],
            ERROR_COLUMN: [each if isinstance(each, str) else None for each in answers],
            NOTE_COLUMN: [None if isinstance(image, str) else image.note for image in found],
        }
        if with_heat:
            pictures = self._pictures([image for image in found if not isinstance(image, str)])
            drawn = dict(zip(good, pictures, strict=True))
            part[HEAT_COLUMN] = [None if isinstance(values[row], str) else drawn[row] for row in rows]
        return part

    def _prepared(self, image: Any, name: str) -> Prepared | str:
        try:
            return prepared(self.model, _as_bytes(image), name)
        except DataError as problem:
            return error_line(name, str(problem))

    def _pictures(self, images: Sequence[Prepared]) -> list[str]:
        pixels = [image.pixels for image in images]
        maps = self.model.heat_maps(pixels) if pixels else ()
        pairs = zip(pixels, maps, strict=True)
        return [base64.b64encode(heat_map_png(*pair)).decode() for pair in pairs]


def _load_pyfunc(data_path: str) -> ImageScorer:
    return ImageScorer(load_model_folder(Path(data_path)))


def _images(model_input: Any) -> list[Any]:
    if isinstance(model_input, bytes | str):
        return [model_input]
    if hasattr(model_input, "columns") or isinstance(model_input, Mapping):
        if IMAGE_COLUMN not in model_input:
            raise DataError(f"no column {IMAGE_COLUMN!r} in the input; it holds {sorted(map(str, model_input))}")
        column = model_input[IMAGE_COLUMN]
        return [column] if isinstance(column, bytes | str) else list(column)
    return list(np.asarray(model_input, dtype=object).reshape(-1))


def _as_bytes(image: Any) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return _unwrapped(bytes(image))
    if isinstance(image, str):
        return bytes_of_text(image)
    raise DataError(f"a {type(image).__name__} is no image; send an image file's bytes, or these as base64")


def _unwrapped(content: bytes) -> bytes:
    """The bytes themselves, or what they hold where they are base64: MLflow passes some texts on as bytes.

    No image file is base64 from end to end: the head of each kind has bytes that no text has.
    """
    try:
        return bytes_of_text(content.decode("ascii"))
    except (UnicodeDecodeError, DataError):
        return content
