"""The picture of `sctune diff`: images on which two trials disagree, with each trial's saliency and heat map."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_DPI = 110
_CELL = 1.75
_CHANGES = 14
"""Lines of the table of differences."""
_GREEN, _RED = "#1b7837", "#b2182b"


class Side(NamedTuple):
    """An image under one trial: maps [S, S] in [0, 1], score, the trial's threshold, whether it is called anomalous.

    saliency: None where the trial cuts by none.
    """

    saliency: np.ndarray | None
    heat: np.ndarray
    score: float
    threshold: float
    anomalous: bool


class Image(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def label(self) -> int: ...
    @property
    def ranks(self) -> tuple[float, float]: ...


class FlippedRow(NamedTuple):
    """pixels: uint8 [S, S, 3]."""

    image: Image
    pixels: np.ndarray
    sides: tuple[Side, Side]


class Facts(Protocol):
    @property
    def study(self) -> str: ...
    @property
    def trials(self) -> tuple[int, int]: ...
    @property
    def task(self) -> str: ...
    @property
    def changes(self) -> Mapping[str, tuple[Any, Any]]: ...
    @property
    def heat_map(self) -> str: ...
    @property
    def flips(self) -> Sequence[Any]: ...
    @property
    def images(self) -> Sequence[Any]: ...


def diff_picture(rows: Sequence[FlippedRow], facts: Facts, path: Path, attribution: str | None) -> Path:
    """A line for each image: image, then saliency and heat map of both trials; above it what differs between them."""
    changes = [(name, *map(_short, values)) for name, values in facts.changes.items()]
    more = len(changes) - _CHANGES
    changes = changes[:_CHANGES] + ([(f"and {more} more", "", "")] if more > 0 else [])
    table = 0.35 + 0.2 * (len(changes) + 1)
    caption = _caption(facts, attribution)
    grid = (_CELL + 0.42) * max(1, len(rows))
    figure = Figure(figsize=(5 * _CELL + 2.4, 0.5 + table + grid + 0.16 * len(caption) + 0.2), layout="constrained")
    flips = len(facts.flips)
    what = f"{flips} of {len(facts.images)} verdicts flip" if flips else "no verdict flips: the largest moves in rank"
    shown = f", {len(rows)} shown" if 0 < len(rows) < flips else ""
    title = f"study {facts.study}, task {facts.task}: trial {facts.trials[0]} and trial {facts.trials[1]}"
    figure.suptitle(f"{title}\n{what}{shown}", fontsize=10)
    parts: Any = figure.subfigures(2, 1, height_ratios=[table, grid])
    _changes(parts[0].subplots(), changes, facts)
    cells = parts[1].subplots(max(1, len(rows)), 5, squeeze=False)
    for axes in cells.flat:
        axes.set_axis_off()
    for line, row in zip(cells, rows, strict=False):
        _line(line, row, facts.trials)
    figure.supxlabel("\n".join(caption), fontsize=7, x=0.01, ha="left")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path


def _line(cells: Sequence[Axes], row: FlippedRow, trials: tuple[int, int]) -> None:
    truth = "anomalous" if row.image.label else "normal"
    cells[0].imshow(row.pixels)
    cells[0].set_title(f"{_name(row.image.path)}\n{truth}", fontsize=7)
    for number, side in enumerate(row.sides):
        saliency, heat = cells[1 + 2 * number], cells[2 + 2 * number]
        if side.saliency is not None:
            saliency.imshow(side.saliency, cmap="magma", vmin=0, vmax=1)
        heat.imshow(row.pixels if row.pixels.shape[:2] == side.heat.shape else side.heat)
        heat.imshow(side.heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6)
        verdict = "anomalous" if side.anomalous else "normal"
        right = side.anomalous == bool(row.image.label)
        sign = ">" if side.anomalous else "\N{LESS-THAN OR EQUAL TO}"
        what = "saliency" if side.saliency is not None else "no saliency"
        saliency.set_title(f"trial {trials[number]}: {what}\nrank {row.image.ranks[number]:.0f}", fontsize=7)
        heat.set_title(
            f"called {verdict}, {'right' if right else 'wrong'}\n{side.score:.3f} {sign} {side.threshold:.3f}",
            fontsize=7,
            color=_GREEN if right else _RED,
        )


def _changes(axes: Axes, changes: Sequence[tuple[str, ...]], facts: Facts) -> None:
    axes.set_axis_off()
    if not changes:
        axes.text(0.5, 0.5, "the two configurations are equal", ha="center", va="center", fontsize=8)
        return
    head = ["field", f"trial {facts.trials[0]}", f"trial {facts.trials[1]}"]
    table = axes.table([head, *map(list, changes)], loc="center", cellLoc="left", colWidths=[0.4, 0.3, 0.3])
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (line, _), cell in table.get_celld().items():
        cell.set_edgecolor("0.85")
        if line == 0:
            cell.set_facecolor("0.93")


def _caption(facts: Facts, attribution: str | None) -> list[str]:
    kind = {
        "gradient": "the smoothed gradient of the anomaly score",
        "score": "the scores of cells or pixels",
    }[facts.heat_map]
    text = (
        "Images that the study selects by, of the development pool. Each trial is at its own threshold from the "
        f"calibration normals. Saliency: the map of training, of the loss as a normal image. Heat map: {kind}; each "
        "map is stretched by itself."
    )
    lines = textwrap.wrap(text, 130)
    return lines + (textwrap.wrap(f"Images: {attribution}; so is this picture.", 130) if attribution else [])


def _name(path: str) -> str:
    name = path if len(path) <= 30 else f"...{path[-27:]}"
    return name.replace("$", r"\$")


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return (text if len(text) <= 32 else f"{text[:29]}...").replace("$", r"\$")
