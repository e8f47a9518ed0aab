"""Ways to search beside each other on a recorded table, at equal compute: a thousand searches of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from sctune.search.simulate.on_table import TableSearch, Way
from sctune.search.simulate.table import RecordedTable, load_table
from sctune.search.simulate.truth import Estimate, Truth, chance, difference

PILOT = 24
"""Searches by which the number of trials is found that a budget is enough for."""
_CHUNK = 10


@dataclass(frozen=True)
class Searched:
    """One search. chosen: place of the best full run's configuration, None where there is no full run. trained: epochs,
    as trainings to the end; seconds: simulated, until its last worker was done; far: mean distance of proposals from
    what was taken for them, None where all points were given.
    """

    chosen: int | None
    trained: float
    seconds: float
    far: float | None


@dataclass(frozen=True)
class Cell:
    """All searches of a way. budget: trainings that were asked for, None where its trials were."""

    budget: float | None
    way: Way
    searches: tuple[Searched, ...]

    def hits(self, truth: Truth) -> list[float]:
        """For each search the chance that what it chose is near the best; none without a full run."""
        return [0.0 if one.chosen is None else float(truth.near[one.chosen]) for one in self.searches]

    def chance(self, truth: Truth) -> Estimate:
        return chance(self.hits(truth))

    def lost(self, truth: Truth) -> float | None:
        """What the chosen ones lie below the configuration of the highest mean, on average; None without full runs."""
        chosen = [one.chosen for one in self.searches if one.chosen is not None]
        return float(truth.means.max() - truth.means[chosen].mean()) if chosen else None

    @property
    def trained(self) -> float:
        return float(np.mean([one.trained for one in self.searches]))

    @property
    def seconds(self) -> float:
        return float(np.mean([one.seconds for one in self.searches]))

    @property
    def far(self) -> float | None:
        moved = [one.far for one in self.searches if one.far is not None]
        return float(np.mean(moved)) if moved else None

    def to_dict(self, truth: Truth) -> dict[str, Any]:
        return {
            "trainings": self.budget,
            "sampler": self.way.sampler,
            "scheduler": self.way.scheduler.model_dump(),
            "replicates": self.way.replicates,
            "slots": self.way.slots,
            "trials": self.way.trials,
            "searches": len(self.searches),
            "without_full_run": sum(one.chosen is None for one in self.searches),
            "trained": self.trained,
            "seconds": self.seconds,
            "chance": vars(self.chance(truth)),
            "lost": self.lost(truth),
            "moved": self.far,
        }


class Searches:
    """Runs searches of a table, in other processes where there are workers. Use as `with searches(...)`."""

    def __init__(self, table: RecordedTable, pool: Executor | None) -> None:
        self.table, self._pool = table, pool

    def run(self, way: Way, count: int) -> tuple[Searched, ...]:
        """Searches number 0 .. count - 1; raises ConfigError as `TableSearch` does."""
        search = TableSearch(self.table, way)
        if self._pool is None:
            return tuple(_searched(search, number) for number in range(count))
        starts = range(0, count, _CHUNK)
        parts = self._pool.map(_part, ((way, start, min(start + _CHUNK, count)) for start in starts))
        return tuple(one for part in parts for one in part)

    def cell(self, way: Way, count: int, budget: float | None) -> Cell:
        """budget: in trainings; the way's own number of trials without one."""
        chosen = way if budget is None else way.of(self._affordable(way, budget, min(PILOT, count)))
        return Cell(budget, chosen, self.run(chosen, count))

    def _affordable(self, way: Way, budget: float, pilot: int) -> int:
        """The most trials with which searches train no more than the budget on average; 1 where none is so few."""
        most = len(self.table.about.configurations)
        trials, affordable = min(max(int(budget) // way.replicates, 1), most), 0
        while affordable < trials:
            trained = float(np.mean([one.trained for one in self.run(way.of(trials), pilot)]))
            if trained > budget:
                trials = max(affordable, 1, trials - 1)
                if trials == max(affordable, 1):
                    break
                continue
            # a trial more costs about as much as those before it
            affordable, trials = trials, min(max(int(trials * budget / trained), trials), most)
        return max(trials, 1)


@contextmanager
def searches(table: RecordedTable, path: Path, workers: int) -> Iterator[Searches]:
    """path: of the table, which each worker process reads; 1 worker: this process."""
    if workers == 1:
        yield Searches(table, None)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _open, (path,)) as pool:
        yield Searches(table, pool)


def compare(
    found: Searches, ways: Sequence[Way], budgets: Sequence[float | None], count: int, say: Callable[[Cell], None]
) -> list[Cell]:
    """Every way at every budget; say: told each cell when it is there."""
    cells = []
    for budget in budgets:
        for way in ways:
            cells.append(found.cell(way, count, budget))
            say(cells[-1])
    return cells


def _searched(search: TableSearch, number: int) -> Searched:
    run = search.run(number)
    best = run.best(search.table.objective)
    moved = [trial.moved.taken for trial in run.trials if trial.moved is not None]
    return Searched(
        None if best is None else best.place,
        run.epochs / search.table.epochs,
        run.seconds,
        float(np.mean(moved)) if moved else None,
    )


_opened: list[RecordedTable] = []


def _open(path: Path) -> None:
    _opened[:] = [load_table(path)]


def _part(asked: tuple[Way, int, int]) -> list[Searched]:
    way, start, end = asked
    search = TableSearch(_opened[0], way)
    return [_searched(search, number) for number in range(start, end)]


def lines_of(cells: Sequence[Cell], truth: Truth) -> list[str]:
    """Two tables in Markdown: each cell, and the differences in points to the ways that were named before it."""
    groups: dict[float | None, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.budget, []).append(cell)
    head = ["trainings", "way", "trials", "trained", "minutes", f"within {truth.within:g} of the best, %", "below it"]
    rows = [[_budget(cell), f"{place}. {cell.way.name}", *_figures(cell, truth)]
            for group in groups.values() for place, cell in enumerate(group, start=1)]  # fmt: skip
    found = _markdown(head, rows)
    most = max(map(len, groups.values()))
    if most == 1:
        return found
    rows = []
    for group in groups.values():
        for place, cell in enumerate(group[1:], start=2):
            gaps = [_gap(difference(cell.hits(truth), other.hits(truth))) for other in group[: place - 1]]
            rows.append([_budget(cell), f"{place}. {cell.way.name}", *gaps, *[""] * (most - place)])
    return [*found, "", *_markdown(["trainings", "way", *(f"minus {n}." for n in range(1, most))], rows)]


def _figures(cell: Cell, truth: Truth) -> list[str]:
    hit, lost = cell.chance(truth), cell.lost(truth)
    return [
        str(cell.way.trials),
        f"{cell.trained:.1f}",
        f"{cell.seconds / 60:.1f}",
        f"{100 * hit.value:.0f} ({100 * hit.low:.0f} to {100 * hit.high:.0f})",
        "-" if lost is None else f"{lost:.4f}",
    ]


def _gap(found: Estimate) -> str:
    return f"{100 * found.value:+.0f} ({100 * found.low:+.0f} to {100 * found.high:+.0f})"


def _budget(cell: Cell) -> str:
    return "-" if cell.budget is None else f"{cell.budget:g}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
