"""`sctune simulate`: any way to search, tried on a recorded table."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit, say
from sctune.cli.schedulers import asked_schedulers, numbers, whole_numbers
from sctune.errors import ConfigError

if TYPE_CHECKING:
    from sctune.search.simulate.compare import Cell
    from sctune.search.simulate.on_table import Way
    from sctune.search.simulate.table import RecordedTable
    from sctune.search.simulate.truth import Truth

WAYS = (("random", "none", 1), ("tpe", "asha", 1), ("tpe", "none", 3), ("tpe", "race", 4))
"""Sampler, scheduler and replicates that are compared where nothing else is asked for; the second is the default."""


def simulate(
    table: Annotated[
        Path, typer.Argument(help="Of benchmarks/record_table.py, for example benchmarks/tables/elpv.npz.")
    ],
    sampler: Annotated[
        str | None, typer.Option(help="Names with commas, as the other options; all are combined.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Names; race goes with several replicates alone.")] = None,
    replicates: Annotated[str | None, typer.Option(help="Whole numbers.")] = None,
    grace: Annotated[str | None, typer.Option(help="First rungs in epochs; default: the profile's.")] = None,
    factor: Annotated[str | None, typer.Option(help="Whole numbers; default: the profile's.")] = None,
    stop_confidence: Annotated[str | None, typer.Option(help="From .5 to below 1.")] = None,
    min_gain: Annotated[float, typer.Option(min=0, help="The search ends by itself, as in `search`; 0: never.")] = 0.0,
    trainings: Annotated[str, typer.Option(help="Budgets: as many trainings as each way may cost.")] = "12,24,36,60",
    trials: Annotated[
        int | None, typer.Option(min=1, help="So many trials each, whatever they cost, in place of --trainings.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Trials at a time.")] = 1,
    repeat: Annotated[int, typer.Option(min=1, help="Searches of each way and budget.")] = 1000,
    within: Annotated[
        float, typer.Option(min=0, help="So near to the best is a hit, in units of the objective.")
    ] = 0.01,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: opt.AsJson = False,
) -> None:
    """How often a way to search finds one of the best configurations of a recorded table, at equal compute.

    Samplers, schedulers and replicates are the real ones; only the trainings are read from the table, with their
    seconds. Prints tables in Markdown. Without --sampler, --scheduler and --replicates: random search, single runs with
    TPE and ASHA, three seeds for everybody, and a race of four.
    """
    from sctune.search.simulate.compare import compare, lines_of, searches
    from sctune.search.simulate.on_table import TableSearch
    from sctune.search.simulate.table import load_table
    from sctune.search.simulate.truth import truth_of

    recorded = load_table(table)
    ways = _ways(recorded, sampler, scheduler, replicates, grace, factor, stop_confidence)
    ways = [_told(way, slots, min_gain, trials or 1) for way in ways]
    budgets = [None] if trials is not None else _budgets(trainings)
    for way in ways:
        TableSearch(recorded, way)  # what cannot be is refused before anything is simulated
    truth = truth_of(recorded, within)
    started = time.perf_counter()
    with searches(recorded, table, workers) as found:
        cells = compare(found, ways, budgets, repeat, lambda cell: _say(cell, time.perf_counter() - started))
    document = _facts(recorded, truth) | {"ways": [cell.to_dict(truth) for cell in cells]}
    emit(document if as_json else None, [*_head(recorded, truth, repeat, slots), "", *lines_of(cells, truth)])


def _budgets(text: str) -> list[float | None]:
    found = numbers(text, "--trainings")
    if min(found) < 1:
        raise ConfigError(f"--trainings {text}: one training is the least; give 1 or more")
    return [*found]


def _say(cell: Cell, seconds: float) -> None:
    budget = f"{cell.way.trials} trials" if cell.budget is None else f"{cell.budget:g} trainings"
    say([f"{seconds:.0f} s: {budget}, {cell.way.name}"])


def _facts(table: RecordedTable, truth: Truth) -> dict[str, Any]:
    return {
        "table": table.about.name,
        "configurations": len(table.about.configurations),
        "seeds": len(table.about.seeds),
        "within": truth.within,
        "spread": truth.spread,
        "error": truth.error,
        "moved": truth.moved,
    }


def _ways(
    table: RecordedTable,
    samplers: str | None,
    schedulers: str | None,
    replicates: str | None,
    graces: str | None,
    factors: str | None,
    chances: str | None,
) -> list[Way]:
    """Every combination, a race of one replicate left out; each once."""
    from sctune.config import search_defaults
    from sctune.search.rules.registry import RACE
    from sctune.search.simulate.on_table import Way
    from sctune.search.study.manifest import SchedulerSpec

    usual = search_defaults(table.about.profile)
    grace = None if usual.grace is None else min(usual.grace, table.epochs)
    own = SchedulerSpec(name=usual.scheduler, grace=grace, factor=usual.factor)

    def specs(names: str | None) -> list[SchedulerSpec]:
        return asked_schedulers(own, names or usual.scheduler, factors, graces, chances)

    if samplers is schedulers is replicates is None:
        # a table that is still being recorded may have fewer seeds
        most = len(table.about.seeds)
        asked = [(one, spec, min(count, most)) for one, name, count in WAYS for spec in specs(name)]
    else:
        counts = whole_numbers(replicates or "1", "--replicates")
        names = (samplers or usual.sampler).split(",")
        asked = [*product(names, specs(schedulers), counts)]
    ways = [Way(*one) for one in asked if one[1].name != RACE or one[2] > 1]
    if not ways or any(way.replicates < 1 for way in ways):
        raise ConfigError("--replicates: give 1 or more, and 2 or more for scheduler race")
    return list(dict.fromkeys(ways))


def _told(way: Way, slots: int, min_gain: float, trials: int) -> Way:
    from dataclasses import replace

    return replace(way, slots=slots, min_gain=min_gain, trials=trials)


def _head(table: RecordedTable, truth: Truth, repeat: int, slots: int) -> list[str]:
    about, figures = (
        table.about,
        f"--spread {truth.spread:.4f} --error {truth.from_seed_to_seed:.4f} --shared {truth.shared:.2f}",
    )
    return [
        f"table {about.name}: {len(about.configurations)} configurations of space {table.space.name}, "
        f"{len(about.seeds)} seeds, {table.epochs} epochs; configurations differ by {truth.spread:.4f} (SD), from seed "
        f"to seed one moves by {truth.error:.4f} by itself and all together by {truth.moved:.4f}",
        f"{repeat} searches of each way, {slots} trial(s) at a time; normal values of the same variances: "
        f"python benchmarks/simulate_race.py {figures}",
    ]
