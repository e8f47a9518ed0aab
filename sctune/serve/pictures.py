"""Pictures of an evaluation: ROC curve, histogram of the scores, and the worst mistakes with their heat maps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from sctune.deploy.model import Model, heat_map_png
from sctune.serve.evaluate import Evaluation, Judged
from sctune.tracking.plots import roc_curve, score_histogram

ACROSS, DOWN = 3, 2
"""Mistakes of one kind beside and below each other."""
_CELL = 1.5
"""Inches of an image."""
_DPI = 110


class Shown(NamedTuple):
    """An image [S, S, 3], the same under its heat map, and what is written above them."""

    image: np.ndarray
    heat: np.ndarray
    text: str


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
    blocks = [_shown(evaluation, rows) for rows in (escapes, alarms)]
    width = 2 * ACROSS * _CELL
    lines = textwrap.wrap(evaluation.data.attribution or "", int(width * 72 / 7 / 0.55))
    heights = [0.5 + max(0.3, -(-len(block) // ACROSS) * (_CELL + 0.45)) for block in blocks]
    foot = 0.25 + 0.14 * len(lines)
    figure = Figure(figsize=(width, sum(heights) + foot), layout="constrained")
    parts = figure.subfigures(3, 1, height_ratios=[*heights, foot], squeeze=False)[:, 0]
    for part, head, block in zip(parts, heads, blocks, strict=False):
        _draw(part, head, block)
    parts[2].text(0.01, 0.5, "\n".join(lines), fontsize=7, va="center", color="0.3")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path


def _shown(evaluation: Evaluation, rows: Sequence[Judged]) -> list[Shown]:
    if not rows:
        return []
    model: Model = evaluation.model
    images = [model.prepare(evaluation.data.root / row.file.path).pixels for row in rows]
    shown = []
    for row, image, heat in zip(rows, images, model.heat_maps(images), strict=True):
        # the end of a path tells more than its beginning
        name = row.file.path if len(row.file.path) <= 34 else f"...{row.file.path[-31:]}"
        kind = f"{row.file.kind}, " if row.file.label else ""
        with Image.open(BytesIO(heat_map_png(image, heat))) as drawn:
            shown.append(Shown(image, np.asarray(drawn), f"{name}\n{kind}score {row.score:.3f}"))
    return shown


def _draw(part: SubFigure, head: str, block: Sequence[Shown]) -> None:
    part.suptitle(head, fontsize=10, x=0.01, ha="left")
    if not block:
        part.text(0.01, 0.3, "none", fontsize=9, color="0.4")
        return
    down = -(-len(block) // ACROSS)
    cells = part.subfigures(down, ACROSS, squeeze=False).flat
    for cell, one in zip(cells, block, strict=False):
        cell.suptitle(one.text, fontsize=7)
        for axes, image in zip(cell.subplots(1, 2), (one.image, one.heat), strict=True):
            axes.imshow(image)
            axes.set_axis_off()
