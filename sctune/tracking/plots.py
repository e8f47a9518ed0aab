"""Pictures of scores, pseudo anomalies and searches, as PNG files (matplotlib without a display).

Every function writes one file and gives its path; attribution: what the licence of the shown images asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sctune.metrics.objective import AUROC, Objective

Array = np.ndarray
STATE_COLOURS = {"COMPLETE": "#1b7837", "PRUNED": "#e08214", "FAIL": "#b2182b", "RUNNING": "#4393c3", "WAITING": "0.7"}
_DPI = 110


class PlottedTrial(Protocol):
    """A trial as the study's record gives it: number, state, varied params, value of each epoch, last value."""

    @property
    def number(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def params(self) -> Mapping[str, Any]: ...
    @property
    def values(self) -> Mapping[int, float]: ...
    @property
    def value(self) -> float | None: ...


class GalleryRow(NamedTuple):
    """One pseudo anomaly: images uint8 or [0, 1] [H, W, 3], saliency [H, W] in [0, 1] or None, mask [H, W] 0 or 1."""

    donor: Array
    receiver: Array
    saliency: Array | None
    mask: Array
    result: Array


def roc_points(labels: Array, scores: Array) -> tuple[Array, Array]:
    """False and true positive rates [K] of every threshold from (0, 0) to (1, 1); equal scores make one step."""
    order = np.argsort(-scores, kind="stable")
    positive = labels[order].astype(bool)
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    true = np.cumsum(positive)[last_of_ties] / max(1, positive.sum())
    false = np.cumsum(~positive)[last_of_ties] / max(1, (~positive).sum())
    return np.append(0.0, false), np.append(0.0, true)


def roc_curve(labels: Array, scores: Array, path: Path, title: str = "Selection split") -> Path:
    """ROC curve of labels [N] (0 normal, 1 anomalous) and scores [N], with its area."""
    false, true = roc_points(np.asarray(labels), np.asarray(scores, dtype=float))
    figure, axes = _axes(4.6, 4.4)
    axes.plot(false, true, color="#2166ac", label=f"{AUROC.label} {np.trapezoid(true, false):.3f}")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal", title=title)
    axes.legend(loc="lower right")
    return _save(figure, path)


def score_histogram(
    labels: Array, scores: Array, path: Path, title: str = "Selection split", threshold: float | None = None
) -> Path:
    """Anomaly scores [N] of normal and anomalous images (labels [N], 0 and 1) on common bins, and the threshold."""
    labels, scores = np.asarray(labels).astype(bool), np.asarray(scores, dtype=float)
    figure, axes = _axes(5.6, 3.6)
    edges = np.histogram_bin_edges(scores, bins=min(40, max(8, len(scores) // 4)))
    for flag, name, colour in ((False, "normal", "#4393c3"), (True, "anomalous", "#d6604d")):
        chosen = scores[labels == flag]
        axes.hist(chosen, bins=edges.tolist(), alpha=0.6, color=colour, label=f"{name} ({len(chosen)})")
    if threshold is not None:
        axes.axvline(threshold, color="0.2", linestyle="--", linewidth=1, label=f"threshold {threshold:.3f}")
    axes.set(xlabel="anomaly score", ylabel="images", title=title)
    axes.legend()
    return _save(figure, path)


def gallery(rows: Sequence[GalleryRow], path: Path, attribution: str | None) -> Path:
    """Pseudo anomalies, one a line: donor, receiver, saliency map, mask, result; the attribution underneath."""
    figure = Figure(figsize=(9, 1.9 * max(1, len(rows)) + (0.7 if attribution else 0.3)), layout="constrained")
    grid = figure.subplots(max(1, len(rows)), 5, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, title in zip(grid[0], ("donor", "receiver", "saliency of the donor", "mask", "result"), strict=True):
        axes.set_title(title, fontsize=9)
    for line, row in zip(grid, rows, strict=False):
        line[0].imshow(row.donor)
        line[1].imshow(row.receiver)
        if row.saliency is None:
            line[2].text(0.5, 0.5, "not used", ha="center", va="center", fontsize=8, transform=line[2].transAxes)
        else:
            line[2].imshow(row.saliency, cmap="magma", vmin=0, vmax=1)
        line[3].imshow(row.mask, cmap="gray", vmin=0, vmax=1)
        line[4].imshow(row.result)
    if attribution:
        figure.supxlabel(attribution, fontsize=7, wrap=True)
    return _save(figure, path)


def learning_curves(rows: Sequence[PlottedTrial], path: Path, objective: Objective) -> Path:
    """The objective over epochs of every trial, coloured by state."""
    figure, axes = _axes(6.4, 4)
    _curves(axes, rows, objective)
    return _save(figure, path)


def search_picture(rows: Sequence[PlottedTrial], path: Path, objective: Objective) -> Path:
    """A finished search in one picture: value of each trial with the best so far, and all learning curves."""
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    history, curves = figure.subplots(1, 2)
    best: float | None = None
    steps = []
    for row in sorted(rows, key=lambda one: one.number):
        if row.value is not None:
            history.scatter(row.number, row.value, color=_colour(row.state), s=28, zorder=3)
        if row.value is not None and row.state == "COMPLETE":
            best = row.value if best is None else objective.best((best, row.value))
        if best is not None:
            steps.append((row.number, best))
    if steps:
        history.step(*zip(*steps, strict=True), where="post", color="0.3", linewidth=1.2, label="best so far")
    _legend(history, rows)
    history.xaxis.set_major_locator(MaxNLocator(integer=True))
    history.set(xlabel="trial", ylabel=objective.metric, title="Value of each trial")
    _curves(curves, rows, objective)
    return _save(figure, path)


def _curves(axes: Axes, rows: Sequence[PlottedTrial], objective: Objective) -> None:
    for row in rows:
        if row.values:
            epochs = sorted(row.values)
            points = [row.values[epoch] for epoch in epochs]
            axes.plot(epochs, points, color=_colour(row.state), alpha=0.75, linewidth=1.2, marker=".", markersize=4)
    _legend(axes, rows)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=objective.metric, title="Learning curves")


def _legend(axes: Axes, rows: Sequence[PlottedTrial]) -> None:
    for state in STATE_COLOURS:
        count = sum(row.state == state for row in rows)
        if count:
            axes.plot([], [], marker="o", linestyle="", color=_colour(state), label=f"{state.lower()} ({count})")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _colour(state: str) -> str:
    return STATE_COLOURS.get(state, "0.5")


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    # no software version inside: the same study gives the same file
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path
