"""One picture in many encodings is one picture: train cache, predict, HTTP service, MLflow and ONNX give one score."""

from __future__ import annotations

import base64
import csv
import os
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from sctune.data.decode import Decoding
from sctune.data.images import ImageCache
from sctune.deploy.export import run_exported, write_exported
from sctune.deploy.flavor import ImageScorer
from sctune.deploy.model import load_model_folder
from sctune.serve.predict import predict_to_file, predicted_rows
from tests.models import small_config, write_small_model
from tests.serve.http_server import HttpServer

DEEP = (np.random.default_rng(7).integers(0, 4096, (90, 70)) // 3 + np.arange(70) * 30).astype(np.uint16)
"""Values of a 12-bit camera."""
LEVELS = (DEEP.astype(np.uint32) * 255 // 4095).astype(np.uint8)


def saved(array: NDArray[Any], kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(stream, kind, **options)
    return stream.getvalue()


def written(write: Callable[[BytesIO], object]) -> bytes:
    stream = BytesIO()
    write(stream)
    return stream.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


ENCODINGS = {
    "8-bit.png": saved(LEVELS, "PNG"),
    "colours.png": saved(np.stack([LEVELS] * 3, axis=-1), "PNG"),
    "8-bit.bmp": saved(LEVELS, "BMP"),
    "lossless.webp": saved(np.stack([LEVELS] * 3, axis=-1), "WEBP", lossless=True),
    "opaque.png": saved(np.dstack([LEVELS, LEVELS, LEVELS, np.full_like(LEVELS, 255)]), "PNG"),
    "turned.png": saved(np.rot90(LEVELS), "PNG", exif=turned(6)),
    "12-in-16.png": saved(DEEP, "PNG"),
    "12-in-16-turned.tif": saved(np.rot90(DEEP, -1), "TIFF", exif=turned(8)),
    "12-in-32.tif": saved(DEEP.astype(np.int32), "TIFF"),
    "12-as-float.tif": saved(DEEP.astype(np.float32), "TIFF"),
    "white-is-zero.tif": written(lambda out: tifffile.imwrite(out, 255 - LEVELS, photometric="miniswhite")),
    "colours-12-in-16.tif": written(
        lambda out: tifffile.imwrite(out, np.stack([DEEP] * 3, axis=-1), photometric="rgb", compression="lzw")
    ),
    "bands-last.npy": written(lambda out: np.save(out, np.stack([DEEP] * 3, axis=-1))),
    "bands-first.npy": written(lambda out: np.save(out, np.stack([DEEP] * 3))),
}
HOT = DEEP.copy()
HOT[0, :3] = 65535
FLAGGED = {
    "hot.npy": written(lambda out: np.save(out, HOT)),
    "dim.png": saved(DEEP // 32, "PNG"),
    "flat.bmp": saved(np.full_like(LEVELS, 7), "BMP"),
    "plain.png": ENCODINGS["8-bit.png"],
}


class Told(NamedTuple):
    """Way -> file -> score, and way -> file -> note, of the files in FLAGGED."""

    scores: dict[str, dict[str, float]]
    notes: dict[str, dict[str, str | None]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    root = tmp_path_factory.mktemp("one")
    images = root / "images"
    images.mkdir()
    for name, content in {**ENCODINGS, **FLAGGED}.items():
        (images / name).write_bytes(content)
    folder = write_small_model(root / "model", small_config(data__range="bits:12"))
    model = load_model_folder(folder)
    names, paths = list(ENCODINGS), [str(images / name) for name in ENCODINGS]
    cached = ImageCache(root / "cache").array(images, names, Decoding.of(model.config.data))
    pixels = np.stack([cached.array[cached.index[name]] for name in names])
    predict_to_file(model, paths, root / "scores.csv")
    with (root / "scores.csv").open(newline="") as stream:
        rows = {os.path.basename(row["path"]): float(row["score"]) for row in csv.DictReader(stream)}
    flagged = {name: next(predicted_rows(model, [str(images / name)]))[0]["note"] for name in FLAGGED}
    wrapped = ImageScorer(model).predict(list(FLAGGED.values()))["note"].tolist()
    encoded = [base64.b64encode(content).decode() for content in ENCODINGS.values()]
    mlflow = ImageScorer(model).predict({"image": encoded})
    with HttpServer(root, "--model", folder) as server:
        served = server.form(ENCODINGS).json()["results"]
        noted = server.form(FLAGGED).json()["results"]
    onnx = run_exported(write_exported(model, root, "onnx"), "onnx", pixels)
    scores = {
        "train cache": dict(zip(names, model.score(pixels).tolist(), strict=True)),
        "predict": rows,
        "mlflow": dict(zip(names, mlflow["score"].tolist(), strict=True)),
        "serve": {name: row["score"] for name, row in zip(names, served, strict=True)},
        "onnx": dict(zip(names, map(float, onnx), strict=True)),
    }
    notes = {
        "predict": flagged,
        "mlflow": dict(zip(FLAGGED, wrapped, strict=True)),
        "serve": {row["name"]: row.get("note") for row in noted},
    }
    return Told(scores, notes)


def test_every_encoding_has_the_score_of_the_plain_picture_on_every_way(told: Told) -> None:
    plain = told.scores["train cache"]["8-bit.png"]
    for way, found in told.scores.items():
        largest = max(abs(score - plain) for score in found.values())
        print(f"{way}: largest difference {largest:g} over {len(found)} encodings")
        assert set(found) == set(ENCODINGS)
        assert largest <= (2e-5 if way == "onnx" else 0), way


def test_what_was_flagged_is_told_on_every_way(told: Told) -> None:
    found = told.notes["predict"]
    assert found == told.notes["mlflow"] == told.notes["serve"]
    assert found["hot.npy"] == "3 hot pixels of up to 65535 count as 4095" and found["plain.png"] is None
    assert (found["dim.png"] or "").startswith("nearly black: values up to ")
    assert found["flat.bmp"] == "constant: every pixel is 7"
