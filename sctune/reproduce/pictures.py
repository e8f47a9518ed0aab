"""A reproduced table as a picture: our numbers with their intervals beside the paper's; figures 7a and 7b as curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sctune.reproduce.results import Result
from sctune.reproduce.tables import Header, training

AXES = {"fig7a": "saliency threshold", "fig7b": "number of patches"}

_DPI = 110
_ROW_INCHES = 0.16


def picture(header: Header, results: Sequence[Result], path: Path) -> Path:
    """Write the picture of a table or figure as PNG, one panel for each number of training anomalies."""
    amounts = list(dict.fromkeys(result.anomalies for result in results))
    curves = any(result.column.point is not None for result in results)
    # the panels share their columns, so the last one's legend is that of all
    height = 4.2 if curves else 2.0 + _ROW_INCHES * max(len([r for r in results if r.anomalies == n]) for n in amounts)
    figure = Figure(figsize=(4 + 4.5 * len(amounts), height), layout="constrained")
    panels = figure.subplots(1, len(amounts), squeeze=False)[0]
    for axes, anomalies in zip(panels, amounts, strict=True):
        chosen = [result for result in results if result.anomalies == anomalies]
        handles = (_curves if curves else _dots)(axes, chosen)
        axes.set_xlabel(AXES.get(header.table, "AUROC"))
        axes.set_title(training(anomalies), fontsize=10)
    if handles:
        figure.legend(handles=handles, fontsize=8, loc="outside right center")
    colour = "#b2182b" if header.shuffled else "black"
    figure.suptitle("\n".join([*header.lines, *missing_rows(results)]), fontsize=8, color=colour, wrap=True)
    if header.attributions:
        credits = "\n".join(f"Images: {line}" for line in header.attributions)
        figure.supxlabel(credits, fontsize=6, color="0.3", x=0.01, ha="left", wrap=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    # no software version inside: the same numbers give the same file
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path


def missing_rows(results: Sequence[Result]) -> list[str]:
    """A line that says how many rows lack a number of ours that could have been measured; none where all are there."""
    rows = [result for result in results if not result.is_mean and result.column.values is not None]
    every, lacking = ({(r.group, r.row, r.anomalies) for r in some} for some in (rows, [r for r in rows if not r.ours]))
    return [f"{len(lacking)} of {len(every)} rows missing or without all columns"] if lacking else []


def row_label(results: Sequence[Result]) -> str:
    """What a row of the picture is called, with what limits its numbers; results: its columns."""
    first = results[0]
    name = first.row if first.row == first.group else f"{first.group} {first.row}"
    return name + _limits(results)


def _limits(results: Sequence[Result]) -> str:
    """The notes of the numbers shown, in brackets; of some columns or points only, that is said."""
    ours = [result for result in results if result.ours]
    limits = list(dict.fromkeys(result.note for result in ours if result.note))
    some = " (in part)" if limits and any(not result.note for result in ours) else ""
    return f" ({', '.join(limits)}{some})" if limits else ""


def _dots(axes: Axes, results: Sequence[Result]) -> list[Artist]:
    """Our mean with its interval (filled) and the paper's with its deviation (hollow), a line for each column."""
    columns = list(dict.fromkeys(result.column.label for result in results))
    places, labels = [], []
    for height, result in enumerate(results):
        # each row's columns follow each other
        row = [other for other in results if (other.group, other.row) == (result.group, result.row)]
        colour = _colour(columns.index(result.column.label))
        if result.ours:
            ours = result.ours
            reach = [[ours.auroc - ours.low], [ours.high - ours.auroc]]
            axes.errorbar(ours.auroc, height, xerr=np.clip(reach, 0, None), fmt="o", color=colour, markersize=4.5)
        if result.paper:
            axes.errorbar(
                result.paper.mean, height, xerr=result.paper.std or None, fmt="D", color=colour, markersize=4,
                markerfacecolor="white", alpha=0.7, linewidth=0.8,
            )  # fmt: skip
        if result is row[0]:
            places.append(height)
            labels.append(row_label(row))
            axes.axhline(height - 0.5, color="0.85", linewidth=0.6, zorder=0)
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(len(results) - 0.5, -0.5)
    handles: list[Artist] = [
        Line2D([], [], color=_colour(i), marker="o", linestyle="", label=n) for i, n in enumerate(columns)
    ]
    handles.append(
        Line2D([], [], color="0.3", marker="D", markerfacecolor="white", linestyle="", label="the paper's number")
    )
    return handles


def _curves(axes: Axes, results: Sequence[Result]) -> list[Artist]:
    """The mean of each group over the points of each series, with its interval; rows where a group has no mean."""
    grouped = {result.group for result in results if result.is_mean}
    lines: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.is_mean == (result.group in grouped):
            name = result.group if result.is_mean or result.row == result.group else f"{result.group} {result.row}"
            lines.setdefault((name, result.column.series), []).append(result)
    names = list(dict.fromkeys(name for name, _ in lines))
    kinds = list(dict.fromkeys(series for _, series in lines))
    for (name, series), found in lines.items():
        points = [(result.column.point, result.ours) for result in found if result.ours and result.column.point]
        if points:
            at = [float(point) for point, _ in points if point is not None]
            colour = _colour(names.index(name))
            dashes = "--" if kinds.index(series) else "-"
            label = (f"{name}, {series}" if series else name) + _limits(found)
            axes.plot(at, [ours.auroc for _, ours in points], dashes, marker="o", color=colour, label=label)
            low, high = [ours.low for _, ours in points], [ours.high for _, ours in points]
            axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    if all(result.column.point == int(result.column.point or 0) for result in results):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(ylabel="AUROC")
    return list(axes.get_legend_handles_labels()[0])


def _colour(index: int) -> str:
    colours: list[str] = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    return colours[index % len(colours)]
