"""Pictures of images that a model calls wrongly, in blocks: each image beside itself under its heat maps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

_DPI = 110
_LETTER = 0.55
"""Mean width of a letter, as a share of the font's size."""


class Shown(NamedTuple):
    """An image as one or several pictures [S, S, 3] beside each other, and what is written above them."""

    pictures: Sequence[np.ndarray]
    text: str


class Block(NamedTuple):
    """Images of one kind under a headline."""

    head: str
    shown: Sequence[Shown]


class Look(NamedTuple):
    """across: images beside each other, of so many panels each, whose side is `cell` inches. names: of the panels.

    above: inches of what is written above an image.
    """

    across: int
    panels: int
    cell: float = 1.5
    names: Sequence[str] = ()
    above: float = 0.45


def short_path(path: str, most: int = 34) -> str:
    """The end of a path, which tells more than its beginning."""
    return path if len(path) <= most else f"...{path[3 - most :]}"


def blocks_picture(blocks: Sequence[Block], look: Look, path: Path, title: str = "", foot: Sequence[str] = ()) -> Path:
    """Write one PNG. foot: paragraphs underneath, the attribution of the images among them."""
    width = look.panels * look.across * look.cell
    above = [line for text in title.splitlines() for line in textwrap.wrap(text, int(width * 72 / 11 / _LETTER))]
    lines = [line for text in foot for line in textwrap.wrap(text, int(width * 72 / 7 / _LETTER))]
    heights = [0.5 + max(0.3, -(-len(block.shown) // look.across) * (look.cell + look.above)) for block in blocks]
    top, bottom = 0.25 * len(above), 0.25 + 0.14 * len(lines)
    ratios = [max(top, 0.01), *heights, bottom]
    figure = Figure(figsize=(width, sum(ratios)), layout="constrained")
    first, *parts, last = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    first.text(0.01, 0.5, "\n".join(above), fontsize=11, va="center")
    for part, block in zip(parts, blocks, strict=True):
        _draw(part, block, look)
    last.text(0.01, 0.5, "\n".join(lines), fontsize=7, va="center", color="0.3")
    FigureCanvasAgg(figure)
    # no software version inside: the same images give the same file
    figure.savefig(path, dpi=_DPI, metadata={"Software": None}, format="png")
    return path


def _draw(part: SubFigure, block: Block, look: Look) -> None:
    part.suptitle(block.head, fontsize=10, x=0.01, ha="left")
    if not block.shown:
        part.text(0.01, 0.3, "none", fontsize=9, color="0.4")
        return
    down = -(-len(block.shown) // look.across)
    cells = part.subfigures(down, look.across, squeeze=False).flat
    for cell, one in zip(cells, block.shown, strict=False):
        cell.suptitle(one.text, fontsize=7)
        grid = cell.subplots(1, len(one.pictures), squeeze=False)[0]
        for axes, picture in zip(grid, one.pictures, strict=True):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes, name in zip(grid, look.names, strict=False):
            axes.set_xlabel(name, fontsize=6, color="0.3", labelpad=2)
