"""What MLflow calls to load a model: a folder of JSON and safetensors in, a scorer of image bytes out.

The folder holds config.json (the configuration tree), weights.safetensors (the whole detector) and meta.json (study,
trial, selection metrics, licence, threshold), and the package as a wheel in code/. Nothing in it is pickled.
"""

from __future__ import annotations

import base64
import binascii
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sctune.config import TrialConfig
from sctune.deploy.package import build_wheel
from sctune.errors import CheckpointError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from sctune.model.detector import Detector

FORMAT_VERSION = 1
LOADER_MODULE = "sctune.deploy.flavor"
IMAGE_COLUMN = "image"
SCORE_COLUMN = "score"
_BATCH = 32


class ImageScorer:
    """Scores encoded images; higher is more anomalous. meta: what is known about the model."""

    def __init__(self, detector: Detector, config: TrialConfig, meta: Mapping[str, Any]) -> None:
        self.meta = dict(meta)
        self._detector = detector
        self._config = config

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """One score a row, float64, for images as bytes or base64 text.

        model_input: a DataFrame or dict with the column `image`, or a list or array of images. params: none are known.
        Raises DataError naming the row that is not an image.
        """
        import pandas as pd

        if params:
            raise DataError(f"unknown parameters {sorted(params)}; the model takes images only")
        images = _images(model_input)
        # decoded batch by batch, so that memory does not grow with the request
        parts = [self._score(images, start) for start in range(0, len(images), _BATCH)]
        scores = np.concatenate(parts) if parts else np.zeros(0)
        return pd.DataFrame({SCORE_COLUMN: scores.astype(np.float64)})

    def _score(self, images: Sequence[Any], start: int) -> np.ndarray:
        from sctune.data.decode import decode_image

        data = self._config.data
        arrays = []
        for row, image in enumerate(images[start : start + _BATCH], start):
            try:
                arrays.append(decode_image(_as_bytes(image), data.image_size, data.resize))
            except DataError as problem:
                raise DataError(f"row {row}: {problem}") from None
        return self._detector.score_images(np.stack(arrays), batch_size=_BATCH)


def _load_pyfunc(data_path: str) -> ImageScorer:
    return load_model_folder(Path(data_path))


def write_model_folder(folder: Path, config: TrialConfig, weights: Path, meta: Mapping[str, Any]) -> Path:
    """Make the folder that `load_model_folder` reads; weights: the detector's state as safetensors.

    The wheel of the running package goes into code/, so that the model loads where sctune is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"format_version": FORMAT_VERSION, "config": config.model_dump()}
    rows = {"format_version": FORMAT_VERSION, "threshold": None, **meta}
    for name, content in (("config.json", tree), ("meta.json", rows)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copyfile(weights, folder / "weights.safetensors")
    build_wheel(folder / "code")
    return folder


def load_model_folder(folder: Path) -> ImageScorer:
    """The scorer, on the CPU. Raises CheckpointError for a folder that is damaged or of a newer format."""
    from sctune.model.detector import load_detector

    tree, meta = _read(folder / "config.json"), _read(folder / "meta.json")
    config = TrialConfig.load(tree["config"])
    return ImageScorer(load_detector(config, folder / "weights.safetensors"), config, meta)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"cannot read {path} of the model: {problem}") from None
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path} is not of format {FORMAT_VERSION}; load the model with the sctune in its code/")
    return content


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
        return bytes(image)
    if isinstance(image, str):
        try:
            return base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            raise DataError("the text is not base64; send an image file's bytes, or these as base64") from None
    raise DataError(f"a {type(image).__name__} is no image; send an image file's bytes, or these as base64")
