"""From a trained method to what its folder holds: threshold, calibration, kind of heat map, digests of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from sctune.data.decode import Decoding, image_size
from sctune.data.digests import THREADS, file_digests
from sctune.data.images import ImageCache
from sctune.data.masks import usable_masks
from sctune.data.split import Split
from sctune.deploy.calibration import Calibration, Prepared
from sctune.deploy.model import ModelParts
from sctune.errors import DataError
from sctune.methods.base import Fitted
from sctune.metrics.pixel_level import aupro
from sctune.metrics.threshold import DEFAULT_RATE, Threshold, best_f1_threshold, conformal_threshold
from sctune.paths import cache_folder
from sctune.train.heatmap import KINDS, heat_maps
from sctune.train.trainer import Trainer

BEST_F1 = "best-f1"
MOST_MASKS = 64
"""Images whose masks decide the kind of heat map."""


def model_parts(
    trainer: Trainer, meta: Mapping[str, Any], rule: float | str = DEFAULT_RATE, method: Fitted | None = None
) -> ModelParts:
    """Everything about a trained model but its weights.

    method: the model, where it is another one of the same pools; the heat map's kind is then still that of the
    trainer's own, since images that it has not learned from decide it, and so no threshold of best F1 can be had.
    rule: the wanted false-alarm rate in (0, 1), or BEST_F1 on the held-out selection images. Only images of the
    development pool are looked at. There is no threshold where no image was held out for it (selection mode `test`).
    Raises ConfigError for a rate outside (0, 1), DataError for best F1 without held-out anomalies.
    """
    calibration = calibrate(trainer, method)
    return ModelParts(
        meta=meta,
        threshold=_threshold(trainer, calibration, rule),
        calibration=calibration,
        development=digests(trainer.split),
        heat_map=choose_heat_map(trainer),
    )


def calibrate(trainer: Trainer, method: Fitted | None = None) -> Calibration | None:
    """Scores and measures of the calibration normals, None where none are held out.

    method: what scores in the place of the trainer's own.
    """
    split, data = trainer.split, trainer.config.data
    cached = ImageCache(cache_folder()).array(
        split.root, [file.path for file in split.development], Decoding.of(data), data.skip_corrupt
    )
    files = [file for file in split.calibration if file.path in cached.index]
    if not files:
        return None
    pixels = cached.array[[cached.index[file.path] for file in files]]
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(lambda file: image_size(split.root / file.path), files))
    images = [
        Prepared(image, float(image.mean()), float(image.std()), width, height)
        for image, (width, height) in zip(pixels, sizes, strict=True)
    ]
    source = f"{len(files)} normal images of the development pool that took part in no fit"
    return Calibration.of(source, (method or trainer.method).score(pixels).tolist(), images)


def digests(split: Split) -> list[str]:
    """SHA-256 of every file that a trial of this split may have read, the test pool left out."""
    # in mode `test` the test images are read in training too, but only to be scored
    held = {file.path for file in split.test} if split.mode == "test" else set()
    paths = [file.path for file in split.development if file.path not in held]
    return sorted(set(file_digests(split.root, paths).values()))


def choose_heat_map(trainer: Trainer) -> dict[str, Any]:
    """{"kind", "aupro", "images", "masks", "left_out"}: the kind that fits the masks of held-out anomalies better.

    aupro: kind -> value, None where there are no masks: then the gradient is taken, and nothing is claimed. images:
    those that were measured; masks: their mask files; left_out: images with masks that mark nothing or do not fit.
    """
    files = {file.path: file for file in trainer.split.selection}
    masked = [
        (row, files[path])
        for row, path in enumerate(trainer.selection.paths)
        if files[path].label == 1 and files[path].masks
    ][:MOST_MASKS]
    # a mask of a test image would make the choice look at the test
    if not masked or trainer.split.mode == "test":
        return {"kind": "gradient", "aupro": None, "images": 0}
    data = trainer.config.data
    usable = usable_masks(trainer.split.root, [file for _, file in masked], data.image_size, data.resize)
    nothing = {"kind": "gradient", "aupro": None, "images": 0, "left_out": len(masked)}
    if not usable.rows:
        return nothing
    images = trainer.selection.images[[masked[row][0] for row in usable.rows]]
    try:
        made = {kind: heat_maps(trainer.method, images, kind) for kind in KINDS}
        found = {kind: aupro(usable.masks, maps) for kind, maps in made.items() if maps is not None}
    except DataError:  # masks that mark everything
        return nothing
    if not found:
        return nothing
    best = max(found, key=lambda kind: found[kind])
    measured = {"images": len(usable.rows), "masks": usable.files, "left_out": len(masked) - len(usable.rows)}
    return {"kind": best, "aupro": found, **measured}


def _threshold(trainer: Trainer, calibration: Calibration | None, rule: float | str) -> Threshold | None:
    if rule == BEST_F1:
        return best_f1_threshold(*held_out(trainer))
    if calibration is None:
        return None
    return conformal_threshold(calibration.scores, float(rule))


def held_out(trainer: Trainer) -> tuple[Sequence[int], np.ndarray]:
    """Labels and scores of the real selection images; raises DataError where they are the test images."""
    if trainer.split.mode == "test":
        raise DataError("this model was selected on the test images; a threshold from them would be of no use")
    return trainer.selection.labels.tolist(), trainer.method.score(trainer.selection.images)
