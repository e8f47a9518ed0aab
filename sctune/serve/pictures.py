"""Pictures of an evaluation: ROC curve, histogram of the scores, and the worst mistakes with their heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sctune.deploy.model import Model, under_heat_map
from sctune.serve.evaluate import Evaluation, Judged
from sctune.tracking.mistakes import Block, Look, Shown, blocks_picture, short_path
from sctune.tracking.plots import roc_curve, score_histogram

ACROSS, DOWN = 3, 2
"""Mistakes of one kind beside and below each other."""


def write_pictures(evaluation: Evaluation, folder: Path) -> list[Path]:
    """roc.png and histogram.png where both classes are there, and gallery.png."""
    good = [row for row in evaluation.rows if row.score is not None]
    labels = np.array([row.file.label for row in good])
    scores = np.array([row.score for row in good], np.float64)
    title, threshold = f"{evaluation.data.name}: {len(good)} images", evaluation.metrics["threshold"]
    files = [score_histogram(labels, scores, folder / "histogram.png", title, threshold)]
    if 0 < labels.sum() < len(labels):
        files.append(roc_curve(labels, scores, folder / "roc.png", title))
    return [*files, write_gallery(evaluation, folder / "gallery.png")]


def worst_mistakes(evaluation: Evaluation, count: int = ACROSS * DOWN) -> tuple[list[Judged], list[Judged]]:
    """Escapes, the lowest scores first, and false alarms, the highest first; without a threshold, of all images."""
    threshold = evaluation.metrics["threshold"]
    escapes, alarms = [], []
    for row in sorted((row for row in evaluation.rows if row.score is not None), key=lambda row: row.score or 0.0):
        if row.file.label == 1 and (threshold is None or (row.score or 0.0) <= threshold):
            escapes.append(row)
        if row.file.label == 0 and (threshold is None or (row.score or 0.0) > threshold):
            alarms.append(row)
    return escapes[:count], alarms[::-1][:count]


def write_gallery(evaluation: Evaluation, path: Path) -> Path:
    """The worst escapes and false alarms, each beside itself under its heat map."""
    confusion, images = evaluation.metrics["confusion"], evaluation.metrics["images"]
    escapes, alarms = worst_mistakes(evaluation)
    heads = ["Anomalous images with the lowest scores", "Normal images with the highest scores"]
    if confusion is not None:
        heads = [
            f"Escapes: {confusion['escaped']} of {images['anomalous']} anomalous images, the lowest scores first",
            f"False alarms: {confusion['false_alarms']} of {images['normal']} normal images, the highest scores first",
        ]
    blocks = [Block(head, _shown(evaluation, rows)) for head, rows in zip(heads, (escapes, alarms), strict=True)]
    return blocks_picture(blocks, Look(ACROSS, 2), path, foot=[evaluation.data.attribution or ""])


def _shown(evaluation: Evaluation, rows: Sequence[Judged]) -> list[Shown]:
    if not rows:
        return []
    model: Model = evaluation.model
    images = [model.prepare(evaluation.data.root / row.file.path).pixels for row in rows]
    shown = []
    for row, image, heat in zip(rows, images, model.heat_maps(images), strict=True):
        kind = f"{row.file.kind}, " if row.file.label else ""
        text = f"{short_path(row.file.path)}\n{kind}score {row.score:.3f}"
        shown.append(Shown((image, under_heat_map(image, heat)), text))
    return shown
