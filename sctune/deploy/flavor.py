"""What MLflow calls to load a model: its folder in (deploy/model.py), a scorer of encoded images out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sctune.deploy.model import Model, heat_map_png, load_model_folder
from sctune.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

LOADER_MODULE = "sctune.deploy.flavor"
IMAGE_COLUMN = "image"
SCORE_COLUMN = "score"
LABEL_COLUMN = "label"
HEAT_COLUMN = "heat_map"
HEAT_PARAM = "heat_map"
_BATCH = 32


class ImageScorer:
    """Scores encoded images; higher is more anomalous. meta: what is known about the model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.meta = model.meta

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """A row for each image, given as bytes or base64 text: score (float64), label (`normal`, `anomalous` or None).

        model_input: a DataFrame or dict with the column `image`, or a list or array of images. params: heat_map=True
        adds the column heat_map, a PNG as base64. Raises DataError naming the row that is not an image, or the
        parameter that is not known.
        """
        import pandas as pd

        wanted = dict(params or {})
        with_heat = bool(wanted.pop(HEAT_PARAM, False))
        if wanted:
            raise DataError(f"unknown parameters {sorted(wanted)}; the model takes images and {HEAT_PARAM}")
        images = _images(model_input)
        # decoded batch by batch, so that memory does not grow with the request
        parts = [self._part(images, start, with_heat) for start in range(0, len(images), _BATCH)]
        names = [SCORE_COLUMN, LABEL_COLUMN, *([HEAT_COLUMN] if with_heat else [])]
        columns: dict[str, list[Any]] = {name: [value for part in parts for value in part[name]] for name in names}
        typed = {SCORE_COLUMN: np.array(columns[SCORE_COLUMN], np.float64)}
        others = {name: pd.Series(columns[name], dtype=object) for name in names if name != SCORE_COLUMN}
        return pd.DataFrame({**typed, **others})

    def _part(self, images: Sequence[Any], start: int, with_heat: bool) -> dict[str, list[Any]]:
        pixels = []
        for row, image in enumerate(images[start : start + _BATCH], start):
            try:
                pixels.append(self.model.prepare(_as_bytes(image)).pixels)
            except DataError as problem:
                raise DataError(f"row {row}: {problem}") from None
        scores = self.model.score(pixels)
        part: dict[str, list[Any]] = {SCORE_COLUMN: scores.tolist(), LABEL_COLUMN: list(self.model.labels(scores))}
        if with_heat:
            pairs = zip(pixels, self.model.heat_maps(pixels), strict=True)
            part[HEAT_COLUMN] = [base64.b64encode(heat_map_png(*pair)).decode() for pair in pairs]
        return part


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
        try:
            return base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            raise DataError("the text is not base64; send an image file's bytes, or these as base64") from None
    raise DataError(f"a {type(image).__name__} is no image; send an image file's bytes, or these as base64")


def _unwrapped(content: bytes) -> bytes:
    """The bytes themselves, or what they hold where they are base64: MLflow's `inputs` passes the text on as bytes.

    No image file is base64 from end to end: the head of each kind has bytes that no text has.
    """
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        return content
