"""A trained model as people use it: images in; scores, labels and heat maps out.

Its folder holds config.json (the configuration tree), weights.safetensors (`Method.model_state`), meta.json (study,
trial, selection metrics, licence, threshold, kind of heat map), calibration.json (scores and measures of its
calibration images), data.json (digests of the images that it was made from), model_card.md, and the package as a wheel
in code/. Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sctune.config import TrialConfig
from sctune.data.decode import Decoding
from sctune.deploy.calibration import Calibration, Prepared, prepare_image
from sctune.deploy.package import build_wheel
from sctune.errors import CheckpointError, NonFiniteError
from sctune.metrics.threshold import Threshold

if TYPE_CHECKING:
    from sctune.methods.base import Fitted
    from sctune.train.heatmap import Kind

FORMAT_VERSION = 1
NORMAL, ANOMALOUS = "normal", "anomalous"
CARD = "model_card.md"


@dataclass(frozen=True)
class ModelParts:
    """What a model's folder holds beside configuration and weights.

    meta: study, trial, selection metrics, licence, attribution; threshold: None where nothing was held out to set it;
    development: SHA-256 of every image that training, selection or calibration could read; heat_map: {"kind", "aupro"}.
    """

    meta: Mapping[str, Any]
    threshold: Threshold | None = None
    calibration: Calibration | None = None
    development: Sequence[str] = ()
    heat_map: Mapping[str, Any] | None = None
    card: str | None = None


class Model:
    """A loaded model; its calls may come from several threads."""

    def __init__(self, method: Fitted, config: TrialConfig, parts: ModelParts) -> None:
        self.method = method
        self.config = config
        self.parts = parts
        self.threshold = parts.threshold
        self._lock = threading.Lock()

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.parts.meta

    @property
    def development(self) -> frozenset[str]:
        """SHA-256 of every image that training, selection or calibration could read; empty where it is not known."""
        return frozenset(self.parts.development)

    @property
    def name(self) -> str:
        """Study and trial, for people."""
        return f"{self.meta.get('study', 'a model')}, trial {self.meta.get('trial', '?')}"

    @property
    def heat_map_kind(self) -> Kind:
        chosen = (self.parts.heat_map or {}).get("kind")
        return "score" if chosen == "score" else "gradient"

    def prepare(self, source: Path | bytes) -> Prepared:
        """Decode one image; raises DataError for bytes that are no image."""
        return prepare_image(source, Decoding.of(self.config.data))

    def score(self, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float64]:
        """Scores [N] of images uint8 [S, S, 3]; higher is more anomalous.

        The same image has the same score to the last bit, whatever it is scored with and in which order. Raises
        NonFiniteError where a score is no number.
        """
        if not len(images):
            return np.zeros(0)
        with self._lock:
            scores = self.method.score(np.asarray(images))
        if not np.isfinite(scores).all():
            raise NonFiniteError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite numbers")
        return scores

    def labels(self, scores: ArrayLike) -> list[str | None]:
        """`anomalous` above the threshold, else `normal`; None for each where the model has no threshold."""
        values = np.atleast_1d(np.asarray(scores, dtype=np.float64))
        if self.threshold is None:
            return [None] * len(values)
        return [ANOMALOUS if above else NORMAL for above in self.threshold.anomalous(values)]

    def heat_maps(self, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Where the anomaly is: maps [N, S, S] in [0, 1] of images uint8 [S, S, 3], each stretched to its own range."""
        from sctune.train.heatmap import scaled, some_heat_maps

        with self._lock:
            return scaled(some_heat_maps(self.method, np.asarray(images), self.heat_map_kind))


def score_digest(model: Model) -> str:
    """SHA-256 of all that decides a score: the configuration and the weights, whatever device they are on."""
    # without defaults, so that a field which a later sctune adds changes nothing
    settings = model.config.model_dump(exclude_defaults=True)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in sorted(model.method.model_state().items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def under_heat_map(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The image uint8 [S, S, 3] under its heat map [S, S] in [0, 1]: uint8 [S, S, 3]."""
    from matplotlib import colormaps

    colours = colormaps["inferno"](heat)[..., :3] * 255
    # what is cold keeps its own look
    share = 0.65 * heat[..., None]
    mixed: NDArray[np.float64] = (1 - share) * image + share * colours
    return mixed.round().clip(0, 255).astype(np.uint8)


def heat_map_png(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> bytes:
    """`under_heat_map` as PNG."""
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(under_heat_map(image, heat)).save(stream, "PNG")
    return stream.getvalue()


def write_model_folder(folder: Path, config: TrialConfig, weights: Path, parts: ModelParts) -> Path:
    """Make the folder that `load_model_folder` reads; weights: the method's `model_state` as safetensors.

    The wheel of the running package goes into code/, so that the model loads where sctune is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", {"config": config.model_dump()})
    write_parts(folder, parts)
    shutil.copyfile(weights, folder / "weights.safetensors")
    build_wheel(folder / "code")
    return folder


def write_parts(folder: Path, parts: ModelParts) -> None:
    """What `read_parts` reads: meta.json, data.json, and calibration.json and model_card.md where there is one."""
    threshold = None if parts.threshold is None else parts.threshold.to_dict()
    _write(folder / "meta.json", {**parts.meta, "threshold": threshold, "heat_map": parts.heat_map})
    _write(folder / "data.json", {"development": sorted(parts.development)})
    if parts.calibration is not None:
        parts.calibration.write(folder / "calibration.json")
    if parts.card is not None:
        (folder / CARD).write_text(parts.card, encoding="utf-8")


def read_parts(folder: Path) -> ModelParts:
    """Raises CheckpointError for a file that is damaged or of a newer format."""
    meta = _read(folder / "meta.json")
    meta.pop("format_version")
    threshold, heat_map = meta.pop("threshold", None), meta.pop("heat_map", None)
    # models of earlier versions have no such file
    known = _read(folder / "data.json").get("development", []) if (folder / "data.json").is_file() else []
    card = folder / CARD
    try:
        return ModelParts(
            meta=meta,
            threshold=None if threshold is None else Threshold.from_dict(threshold),
            calibration=Calibration.read(folder / "calibration.json"),
            development=known,
            heat_map=heat_map,
            card=card.read_text(encoding="utf-8") if card.is_file() else None,
        )
    except (ValueError, TypeError) as problem:
        raise CheckpointError(f"{folder / 'meta.json'} of the model is damaged: {problem}") from None


def load_model_folder(folder: Path, device: str = "cpu") -> Model:
    """The model, on `device` (cpu, cuda or auto).

    Raises CheckpointError for a folder that is damaged or of a newer format, ConfigError for a GPU that is not there.
    """
    from safetensors.torch import load_file

    from sctune.methods.registry import trained_method
    from sctune.train.runtime import apply_runtime, resolve_device

    config = TrialConfig.load(_read(folder / "config.json")["config"])
    parts = read_parts(folder)
    apply_runtime(config.runtime)
    method = trained_method(config, resolve_device(device), load_file(folder / "weights.safetensors"))
    return Model(method, config, parts)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    document = {"format_version": FORMAT_VERSION, **content}
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"cannot read {path} of the model: {problem}") from None
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path} is not of format {FORMAT_VERSION}; load the model with the sctune in its code/")
    return content
