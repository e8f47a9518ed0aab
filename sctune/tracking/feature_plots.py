"""Pictures of what a detector has learned, of how it sees images, and of what an augmentation makes, as PNG files.

Features as in the paper's figures 1 and 6, the making of pseudo anomalies as in figure 2, groups of images as in
figure 5. Every function writes one file and gives its path; attribution: what the licence of the images asks for.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

Array = np.ndarray

STYLES = {
    # Okabe and Ito's colours, which the colour-blind can tell apart; the shapes say it again
    "normal": ("#0072B2", "o"),
    "seen": ("#D55E00", "^"),
    "unseen": ("#CC79A7", "s"),
    "pseudo": ("#009E73", "X"),
}
"""Group of images -> colour and marker."""

MAKING = ("donor", "saliency", "mask", "receiver", "pseudo anomaly")
"""Columns of the paper's figure 2."""
BESIDE = ("receiver", "donor", "saliency", "mask", "result")
"""Columns of a block of the picture of all augmentations."""

_DPI = 110
_CELL = 1.25
"""Inches of an image in a gallery."""
_GAP = 0.3
_ACROSS = 9
_LETTER = 0.6
"""Mean width of a letter, as a share of the font's size."""


class Making(Protocol):
    """How a pseudo anomaly was made: images [S, S, 3], saliency [S, S] in [0, 1] or None, mask [S, S] bool.

    donor: the receiver itself (the same object) where a piece of the receiver was moved.
    """

    @property
    def donor(self) -> Array: ...
    @property
    def receiver(self) -> Array: ...
    @property
    def saliency(self) -> Array | None: ...
    @property
    def mask(self) -> Array: ...
    @property
    def result(self) -> Array: ...


class Panel(NamedTuple):
    """One scatter: points [N, 2], the group of each in N names, and a line under the title."""

    title: str
    points: Array
    groups: Sequence[str]
    note: str


class Strip(NamedTuple):
    """One line of a gallery: its name, and images [S, S, 3]."""

    name: str
    images: Sequence[Array]


class Column(NamedTuple):
    """What is made of each of N images: pictures uint8 [N, s, s, 3], or maps [N, s, s].

    scale: of the colours of maps: "unit" from 0 to 1, "all" over all images, "each" within an image; note: how they are
    to be read.
    """

    name: str
    values: Array
    scale: str = "unit"
    note: str = ""

    def limits(self, row: int) -> tuple[float, float]:
        """What has the first and the last colour in the map of an image."""
        if self.scale == "unit":
            return 0.0, 1.0
        shown = self.values if self.scale == "all" else self.values[row]
        return float(shown.min()), float(shown.max())


def feature_picture(
    panels: Sequence[Panel], labels: Mapping[str, str], title: str, caption: Sequence[str], path: Path
) -> Path:
    """Scatters side by side in the same colours; labels: group (of STYLES) -> its text in the legend.

    caption: paragraphs underneath.
    """
    width = 5.8 * len(panels)
    lines = _wrapped(caption, width, 8)
    foot = 0.4 + 0.17 * len(lines)
    figure = Figure(figsize=(width, 6 + foot), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[6, foot], squeeze=False)[:, 0]
    above.suptitle("\n".join(_wrapped([title], width, 12)), fontsize=12)
    grid = above.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        _scatter(axes, panel, labels)
    handles, names = grid[0].get_legend_handles_labels()
    below.legend(
        handles, names, loc="upper center", ncols=len(labels), frameon=False, fontsize=10, columnspacing=1.5,
        handletextpad=0.2, borderpad=0.1,
    )  # fmt: skip
    below.text(0.01, 0.08 / foot, "\n".join(lines), fontsize=8, color="0.25", va="bottom")
    return _save(figure, path)


def making_picture(
    rows: Sequence[Making], unseen: Sequence[Array], title: str, path: Path, attribution: str | None
) -> Path:
    """How each pseudo anomaly is made, one a line, as in the paper's figure 2; real unseen anomalies underneath.

    unseen: images [S, S, 3], as many as are shown in one line; none leaves the line out.
    """
    columns = _columns(rows, MAKING)
    shown = list(unseen)[: len(columns)]
    side = 1.3 * _CELL
    width = side * len(columns) + 0.3
    head = _wrapped(title.splitlines(), width, 10)
    lines = _wrapped([attribution] if attribution else [], width, 7)
    height = side * (len(rows) + bool(shown)) + 0.3 + 0.2 * len(head) + 0.16 * len(lines)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle("\n".join(head), fontsize=10)
    grid = figure.subplots(len(rows) + bool(shown), len(columns), squeeze=False)
    for line, row in zip(grid, rows, strict=False):
        for axes, name in zip(line, columns, strict=True):
            _show(axes, row, name)
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize=9)
    if shown:
        _image_line(grid[-1], Strip("real, unseen", shown))
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=7, color="0.25", x=0.02, ha="left")
    return _save(figure, path)


def view_picture(
    names: Sequence[str], columns: Sequence[Column], title: str, path: Path, attribution: str | None
) -> Path:
    """What a method makes of images, one a line; names: of the lines."""
    side = 1.3 * _CELL
    width = side * len(columns) + 0.5
    head = _wrapped(title.splitlines(), width, 10)
    alike: dict[str, list[str]] = {}
    for column in columns:
        alike.setdefault(column.note, []).append(column.name)
    notes = [f"{'; '.join(those)}: {note}." for note, those in alike.items() if note]
    lines = _wrapped([*notes, *([attribution] if attribution else [])], width, 7)
    height = side * len(names) + 0.5 + 0.2 * len(head) + 0.16 * len(lines)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle("\n".join(head), fontsize=10)
    grid = figure.subplots(len(names), len(columns), squeeze=False)
    for row, (line, name) in enumerate(zip(grid, names, strict=True)):
        for axes, column in zip(line, columns, strict=True):
            low, high = column.limits(row)
            axes.imshow(column.values[row], cmap="inferno", vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(
            "\n".join(part for text in name.splitlines() for part in textwrap.wrap(text, 18)), fontsize=8
        )
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title("\n".join(textwrap.wrap(column.name, 18)), fontsize=8)
    figure.supxlabel("\n".join(lines), fontsize=7, color="0.25", x=0.02, ha="left")
    return _save(figure, path)


def group_picture(strips: Sequence[Strip], title: str, path: Path, attribution: str | None) -> Path:
    """Groups of images, one a line, as in the paper's figure 5."""
    columns = max(len(strip.images) for strip in strips)
    width = _CELL * columns + 0.4
    head = _wrapped([title], width, 10)
    lines = _wrapped([attribution] if attribution else [], width, 7)
    height = _CELL * len(strips) + 0.3 + 0.2 * len(head) + 0.16 * len(lines)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle("\n".join(head), fontsize=10)
    for line, strip in zip(figure.subplots(len(strips), columns, squeeze=False), strips, strict=True):
        _image_line(line, strip)
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=7, color="0.25", x=0.02, ha="left")
    return _save(figure, path)


def augmentation_picture(
    blocks: Mapping[str, Sequence[Making]], title: str, caption: Sequence[str], path: Path
) -> Path:
    """What each augmentation does to the same images: a block per kind, a line per image; caption: paragraphs."""
    columns = {name: _columns(rows, BESIDE) for name, rows in blocks.items()}
    bands = _bands(columns)
    across = max(sum(len(columns[name]) for name in band) + _GAP * (len(band) - 1) for band in bands)
    width = _CELL * across
    lines = _wrapped(caption, width, 8)
    count = max(len(rows) for rows in blocks.values())
    head = _wrapped([title], width, 12)
    height = len(bands) * (_CELL * count + 0.6) + 0.2 + 0.2 * len(head) + 0.17 * len(lines)
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle("\n".join(head), fontsize=12)
    for place, band in zip(figure.subfigures(len(bands), 1, squeeze=False).flat, bands, strict=True):
        shares: list[float] = [part for name in band for part in (_GAP, len(columns[name]))][1:]
        rest = across - sum(shares)
        parts = place.subfigures(1, len(shares) + 1, squeeze=False, width_ratios=[*shares, max(rest, 1e-3)])[0]
        for part, name in zip(parts[::2], band, strict=False):
            _block(part, name, blocks[name], columns[name], count)
    figure.supxlabel("\n".join(lines), fontsize=8, color="0.25", x=0.01, ha="left")
    return _save(figure, path)


def _bands(columns: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Names in order, as many beside each other as fit into `_ACROSS` columns."""
    bands: list[list[str]] = [[]]
    for name in columns:
        if bands[-1] and sum(len(columns[other]) for other in [*bands[-1], name]) > _ACROSS:
            bands.append([])
        bands[-1].append(name)
    return bands


def _block(place: SubFigure, name: str, rows: Sequence[Making], columns: Sequence[str], count: int) -> None:
    place.suptitle(name, fontsize=10, fontweight="bold")
    grid = place.subplots(count, len(columns), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, row in zip(grid, rows, strict=False):
        for axes, column in zip(line, columns, strict=True):
            _show(axes, row, column)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(column, fontsize=8)


def _columns(rows: Sequence[Making], names: Sequence[str]) -> list[str]:
    """The names, without saliency and donor where no row has one of its own."""
    missing = set()
    if all(row.saliency is None for row in rows):
        missing.add("saliency")
    if all(row.donor is row.receiver for row in rows):
        missing.add("donor")
    return [name for name in names if name not in missing]


def _show(axes: Axes, row: Making, column: str) -> None:
    axes.set_axis_off()
    if column == "saliency" and row.saliency is not None:
        axes.imshow(row.saliency, cmap="magma", vmin=0, vmax=1)
    elif column == "mask":
        _frame(axes)
        axes.imshow(row.mask, cmap="gray", vmin=0, vmax=1)
    elif column != "saliency":
        axes.imshow({"donor": row.donor, "receiver": row.receiver}.get(column, row.result))


def _frame(axes: Axes) -> None:
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_color("0.7")


def _image_line(line: Sequence[Axes], strip: Strip) -> None:
    for axes in line:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, image in zip(line, strip.images, strict=False):
        axes.imshow(image)
    line[0].set_ylabel(strip.name, fontsize=9)


def _scatter(axes: Axes, panel: Panel, labels: Mapping[str, str]) -> None:
    groups = np.asarray(panel.groups)
    for name, text in labels.items():
        colour, marker = STYLES[name]
        x, y = panel.points[groups == name].T
        # a small group is not hidden below a large one
        axes.scatter(
            x, y, s=38, c=colour, marker=marker, alpha=0.8, linewidths=0.4, edgecolors="white", label=text,
            zorder=2 + 1 / (1 + len(x)),
        )  # fmt: skip
    axes.set_title(f"{panel.title}\n", fontsize=11)
    axes.text(0.5, 1.015, panel.note, transform=axes.transAxes, ha="center", va="bottom", fontsize=8.5, color="0.25")
    axes.margins(0.06)
    _frame(axes)


def _wrapped(paragraphs: Sequence[str], width: float, size: float) -> list[str]:
    """Lines of that font size in points that fit into a figure of that width in inches."""
    return [line for text in paragraphs for line in textwrap.wrap(text, int(72 * width / (_LETTER * size)))]


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    # no software version inside: the same study gives the same file
    figure.savefig(path, dpi=_DPI, metadata={"Software": None}, format="png")
    return path
