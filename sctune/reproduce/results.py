"""Our numbers beside the paper's: one result per row, number of anomalies and column, means of groups included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from sctune.metrics.image_level import auroc
from sctune.metrics.statistics import Scores, bootstrap_interval, pooled_std, spread
from sctune.reproduce.cells import Block, Cell, CellKey
from sctune.reproduce.columns import Column
from sctune.reproduce.paper import Number, Numbers

Scored = Mapping[tuple[CellKey, str], Sequence[Scores]]
"""Cell and column name -> scores, one for each seed."""


@dataclass(frozen=True)
class Ours:
    """What was measured. auroc: mean over subsets and seeds; low, high: 95 % bootstrap interval over the test images.

    subsets: how many rows it averages (1 for a row itself); std_*: see statistics.Spread; by_seed: seed -> mean over
    the subsets.
    """

    auroc: float
    std_trials: float | None
    std_subsets: float | None
    std_pooled: float | None
    low: float
    high: float
    seeds: int
    subsets: int
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Result:
    """One number of a table. ours or paper: None where there is none; note: what limits it.

    derived: the paper's mean of a group as its own rows give it, where the text at hand has lost it.
    """

    group: str
    row: str
    anomalies: int
    column: Column
    is_mean: bool
    ours: Ours | None
    paper: Number | None
    derived: Number | None = None
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.paper is None else self.ours.auroc - self.paper.mean

    @property
    def difference_derived(self) -> float | None:
        """Ours minus the derived mean; None also where ours averages fewer rows."""
        return None if self.ours is None or self.derived is None or self.note else self.ours.auroc - self.derived.mean

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "group": self.group,
            "row": self.row,
            "n_anomalies": self.anomalies,
            "column": self.column.name,
            "is_mean": self.is_mean,
            "ours": None if self.ours is None else asdict(self.ours),
            "paper": None if self.paper is None else asdict(self.paper),
            "difference": self.difference,
            "paper_derived": None if self.derived is None else asdict(self.derived),
            "difference_derived": self.difference_derived,
            "note": self.note,
        }


def table_results(blocks: Sequence[Block], columns: Sequence[Column], scored: Scored) -> list[Result]:
    """All results of a table in its order: rows, then their mean, for each number of anomalies."""
    results = []
    for block in blocks:
        amounts = list(dict.fromkeys(cell.anomalies for cell in block.cells))
        for anomalies in amounts:
            cells = [cell for cell in block.cells if cell.anomalies == anomalies]
            for cell in cells:
                results += [_row(block, cell, column, scored) for column in columns]
            if block.group.mean_label is not None and len(cells) > 1:
                results += [_mean(block, cells, column, scored) for column in columns]
    # a column that sctune cannot run says nothing where the paper has no number either
    return [result for result in results if result.column.values is not None or result.paper or result.derived]


def _row(block: Block, cell: Cell, column: Column, scored: Scored) -> Result:
    runs = scored.get((cell.key, column.name), ())
    number = cell.row.numbers.get((cell.anomalies, column.name))
    ours = _measured([runs]) if runs else None
    return Result(
        block.group.label, cell.row.label, cell.anomalies, column, False, ours, number, note=_source_note(number)
    )


def _source_note(number: Number | None) -> str:
    """Whose number it is, where it is not the paper's."""
    return f"number of {number.source}" if number is not None and number.source else ""


def _mean(block: Block, cells: Sequence[Cell], column: Column, scored: Scored) -> Result:
    group, anomalies = block.group, cells[0].anomalies
    runs = [scored.get((cell.key, column.name), ()) for cell in cells]
    there = [part for part in runs if part]
    # a mean over some of the rows is no counterpart of the paper's
    complete = block.whole and len(there) == len(cells)
    number = group.means.get((anomalies, column.name)) if block.whole else None
    note = _source_note(number) if complete or not there else f"partial: {len(there)} of {block.rows} rows"
    derived = None
    if block.whole and number is None:
        derived = derived_mean([cell.row.numbers for cell in cells], anomalies, column.name)
    return Result(
        group.label,
        str(group.mean_label),
        anomalies,
        column,
        True,
        _measured(there) if there else None,
        number if complete or not there else None,
        derived,
        note,
    )


def derived_mean(rows: Sequence[Numbers], anomalies: int, column: str) -> Number | None:
    """The mean and pooled standard deviation that the paper's own rows give; None where one has no number."""
    numbers = [row.get((anomalies, column)) for row in rows]
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(numbers):
        return None
    means = [number.mean for number in known]
    stds = [number.std for number in known if number.std is not None]
    return Number(float(np.mean(means)), pooled_std(means, stds) if len(stds) == len(means) else None)


def _measured(subsets: Sequence[Sequence[Scores]]) -> Ours:
    values = [[auroc(run.labels, run.scores) for run in runs] for runs in subsets]
    of = spread(values)
    low, high = bootstrap_interval([run for runs in subsets for run in runs])
    return Ours(
        auroc=float(np.mean(values)),
        std_trials=of.trials,
        std_subsets=of.subsets,
        std_pooled=of.pooled,
        low=low,
        high=high,
        seeds=len(values[0]),
        subsets=len(values),
        by_seed=dict(zip((run.seed for run in subsets[0]), np.mean(values, axis=0).tolist(), strict=True)),
    )
