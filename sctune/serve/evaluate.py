"""`sctune evaluate`: a model against images whose labels are known."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sctune.data.catalog import DataSet, ImageFile, open_dataset
from sctune.data.csv_source import COLUMNS
from sctune.data.csv_text import csv_header
from sctune.data.images import THREADS, file_digest
from sctune.data.masks import usable_masks
from sctune.deploy.model import Model
from sctune.errors import DataError
from sctune.metrics.pixel_level import aupro
from sctune.serve.inputs import scored
from sctune.serve.measure import measures, per_kind
from sctune.train.heatmap import some_heat_maps

FORMAT_VERSION = 1
MOST_MASKS = 128
"""Images whose masks the heat maps are measured by, spread evenly over those that have one."""
SCORES = ("path", "label", "kind", "score", "predicted", "in_development", "error")


@dataclass(frozen=True)
class Judged:
    """One image of the data: what it is, its score or its error, and whether the model may have learned from it."""

    file: ImageFile
    score: float | None
    error: str | None
    in_development: bool


@dataclass(frozen=True)
class Evaluation:
    """metrics: the document of metrics.json; rows: of all images that were scored or failed, sorted by path."""

    model: Model
    data: DataSet
    metrics: dict[str, Any]
    rows: tuple[Judged, ...]
    warnings: tuple[str, ...]


def open_labelled(source: str, category: str | None = None) -> DataSet:
    """As `open_dataset`, but refuses a table of predictions, whose labels are a model's own."""
    path = Path(source).expanduser()
    is_table = path.suffix.lower() == ".csv" and path.is_file()
    if is_table and {"score", "threshold"} <= set(csv_header(path, COLUMNS)):
        raise DataError(
            f"{source} is a table of `sctune predict`: its labels are the model's own; give a CSV file with the "
            "columns path and label as a person set them"
        )
    return open_dataset(source, category)


def evaluate(
    model: Model, data: DataSet, unseen_only: bool = False, told: Callable[[int, int], None] = lambda done, total: None
) -> Evaluation:
    """Score all images and measure; told: images done and their total.

    unseen_only: without those that training, selection or calibration of the model could read. Raises DataError where
    no image is left, or none can be read.
    """
    known = set(model.parts.development)
    in_development = _among(data, known)
    files = [file for file in data.files if not (unseen_only and in_development[file.path])]
    if unseen_only and not known:
        raise DataError("--unseen-only: this model does not say which images it was made from; leave the option out")
    if not files:
        raise DataError(f"all {len(data.files)} images of {data.name} were used to make this model; give others")
    rows: list[Judged] = []
    for chunk in scored(model, (str(data.root / file.path) for file in files)):
        for one in chunk:
            file = files[len(rows)]
            rows.append(Judged(file, one.score, one.error, in_development[file.path]))
        told(len(rows), len(files))
    good = [row for row in rows if row.score is not None]
    if not good:
        raise DataError(f"none of the {len(rows)} images of {data.name} can be scored; the first: {rows[0].error}")
    heat_map, notes = _heat_map(model, data, good)
    metrics = _metrics(model, data, good, unseen_only) | {"heat_map": heat_map}
    metrics |= {"failed": len(rows) - len(good), "in_development": sum(row.in_development for row in good)}
    return Evaluation(model, data, metrics, tuple(rows), (*data.notes, *notes, *_warnings(model, rows, data)))


def write_scores(evaluation: Evaluation, path: Path) -> Path:
    """One row per image."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(SCORES)
        for row in evaluation.rows:
            predicted = "" if row.score is None else evaluation.model.labels(row.score)[0]
            named = ("normal", "anomalous")[row.file.label]
            seen = str(row.in_development).lower()
            writer.writerow((row.file.path, named, row.file.kind, row.score, predicted, seen, row.error))
    return path


def write_metrics(evaluation: Evaluation, path: Path) -> Path:
    path.write_text(json.dumps(evaluation.metrics, indent=1) + "\n", encoding="utf-8")
    return path


def _metrics(model: Model, data: DataSet, good: Sequence[Judged], unseen_only: bool) -> dict[str, Any]:
    labels, scores = [row.file.label for row in good], [float(row.score or 0.0) for row in good]
    threshold = None if model.threshold is None else model.threshold.value
    return {
        "format_version": FORMAT_VERSION,
        "model": model.name,
        "data": data.name,
        "licence": data.licence,
        "unseen_only": unseen_only,
        **measures(labels, scores, threshold),
        "kinds": per_kind(labels, scores, [row.file.kind for row in good], threshold),
    }


def _among(data: DataSet, known: set[str]) -> dict[str, bool]:
    """Path -> whether the file's content is one of the model's development images."""
    if not known:
        return {file.path: False for file in data.files}

    def is_known(file: ImageFile) -> bool:
        try:
            return file_digest(data.root / file.path) in known
        except DataError:  # told when it is scored
            return False

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip((file.path for file in data.files), pool.map(is_known, data.files), strict=True))


def _heat_map(model: Model, data: DataSet, good: Sequence[Judged]) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """How well the heat maps fit the masks of anomalous images, None where no mask can be used; notes about masks."""
    anomalous = [row.file for row in good if row.file.label == 1]
    masked = [file for file in anomalous if file.masks]
    if not masked:
        return None, ()
    rows = np.unique(np.linspace(0, len(masked) - 1, min(MOST_MASKS, len(masked))).round().astype(int))
    chosen = [masked[row] for row in rows]
    size, resize = model.config.data.image_size, model.config.data.resize
    usable = usable_masks(data.root, chosen, size, resize)
    if not usable.rows:
        return None, (*usable.notes, f"no AUPRO: none of the masks of {len(chosen)} images can be used")
    images = np.stack([model.prepare(data.root / chosen[row].path).pixels for row in usable.rows])
    maps = some_heat_maps(model.method, images, model.heat_map_kind)
    try:
        value = aupro(usable.masks, maps)
    except DataError:
        return None, (*usable.notes, "the masks mark every pixel; heat maps cannot be measured by them")
    counts = {"images": len(usable.rows), "masks": usable.files, "with_masks": len(masked), "anomalous": len(anomalous)}
    return {"kind": model.heat_map_kind, "aupro": value, **counts}, usable.notes


def _warnings(model: Model, rows: Sequence[Judged], data: DataSet) -> list[str]:
    failed = [row for row in rows if row.error is not None]
    seen = sum(row.in_development for row in rows)
    lines = []
    if seen:
        lines.append(
            f"{seen} of {len(rows)} images were there when this model was trained, selected or calibrated: these "
            "numbers are too good; --unseen-only leaves those images out"
        )
    if not model.parts.development:
        lines.append("this model does not say which images it was made from; if some are among these, the numbers lie")
    if failed:
        lines.append(f"{len(failed)} of {len(rows)} images could not be scored; the first: {failed[0].error}")
    if model.threshold is None:
        lines.append("this model has no threshold; give --threshold for F1, escapes and false alarms")
    if not any(row.file.label for row in rows):
        lines.append(f"{data.name} has no anomalous images here: only false alarms can be counted")
    return lines
