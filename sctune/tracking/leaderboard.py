"""Tables and interactive figures of a study, for its run's artifacts and for reports."""

from __future__ import annotations

import csv
import html
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sctune.metrics.merit import in_order
from sctune.metrics.objective import Objective
from sctune.tracking.plots import PlottedTrial

if TYPE_CHECKING:
    import optuna

_log = logging.getLogger(__name__)


def leaderboard_csv(rows: Sequence[PlottedTrial], path: Path, objective: Objective) -> Path:
    """Every trial with state, epochs, value and varied parameters, best first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(_table(rows, repr, objective))
    return path


def leaderboard_markdown(rows: Sequence[PlottedTrial], objective: Objective) -> str:
    """The same table as Markdown text, values to four digits."""
    head, *body = _table(rows, lambda value: f"{value:.4f}", objective)
    lines = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _table(rows: Sequence[PlottedTrial], show: Callable[[float], str], objective: Objective) -> list[list[str]]:
    names = sorted({name for row in rows for name in row.params})
    table = [["rank", "trial", "state", "epochs", objective.metric, *names]]
    for rank, row in enumerate(in_order(rows, objective), 1):
        value = "" if row.value is None else show(float(row.value))
        cells = [_cell(row.params.get(name, "")) for name in names]
        table.append([str(rank), str(row.number), row.state, str(max(row.values, default=0)), value, *cells])
    return table


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def optuna_plots(study: optuna.Study, folder: Path) -> list[Path]:
    """Interactive history, importance, slice and parallel coordinates, one HTML file each.

    Each file holds its own copy of plotly.js (5 MB): MLflow's page shows HTML in a sandbox that can neither load
    a file beside it nor be sure of the internet. A figure that cannot be made says why in its place.
    """
    import optuna
    from optuna.visualization import (
        plot_optimization_history,
        plot_parallel_coordinate,
        plot_param_importances,
        plot_slice,
    )

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    names = {name for trial in complete for name in trial.params}
    too_few = None
    if len(complete) < 2:
        too_few = f"needs at least 2 complete trials, the study has {len(complete)}"
    elif len(names) < 2:
        too_few = "needs at least 2 varied parameters"
    none = None if complete else "no trial is complete yet"
    makers: list[tuple[str, Callable[[optuna.Study], Any], str | None]] = [
        ("history", plot_optimization_history, none),
        ("importance", plot_param_importances, too_few),
        ("slice", plot_slice, none),
        ("parallel_coordinate", plot_parallel_coordinate, none),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    return [_figure(study, folder / f"{name}.html", make, reason) for name, make, reason in makers]


def _figure(study: optuna.Study, path: Path, make: Callable[[optuna.Study], Any], reason: str | None) -> Path:
    if reason is None:
        try:
            make(study).write_html(path, include_plotlyjs=True)
            return path
        except (ValueError, RuntimeError) as problem:  # Optuna's answer to values or parameters it cannot plot
            reason = str(problem)
    _log.info("%s was left out: %s", path.name, reason)
    title = path.stem.replace("_", " ")
    path.write_text(f"<!doctype html><title>{title}</title><p>No {title} figure: {html.escape(reason)}.</p>\n")
    return path
