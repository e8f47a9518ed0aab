"""`sctune reproduce`: a table or figure of the paper, as far as the data at hand allow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sctune.cli import options as opt
from sctune.cli.output import emit, messages, say
from sctune.config import parse_assignments
from sctune.errors import ConfigError

if TYPE_CHECKING:
    from sctune.reproduce.run import TableOutcome

Table = Annotated[str, typer.Argument(help="table1, table2, table3, table4, fig7a or fig7b.")]
Dataset = Annotated[
    list[str] | None,
    typer.Option(help="mvtec, mastcam, sdd, elpv, optical or aitex; repeatable; default: the table's."),
]
Category = Annotated[list[str] | None, typer.Option(help="Category of MVTec AD; repeatable.")]
KnownClass = Annotated[
    list[str] | None, typer.Option(help="Anomaly class known in training (hard setting); repeatable.")
]
Method = Annotated[
    list[str] | None, typer.Option(help="Column of the table; repeatable; default: those that the table compares.")
]
NAnomalies = Annotated[str | None, typer.Option(help="Training anomalies, with commas; default: the table's.")]
Seeds = Annotated[str, typer.Option(help="Comma-separated; each is a trial of the paper's three.")]
Profile = Annotated[str | None, typer.Option(help="smoke, cpu, gpu or paper; default: paper with a GPU, else cpu.")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder of prepared data sets; default: SCTUNE_HOME/data.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", help="key=value of the configuration; repeatable.")]
Shuffle = Annotated[
    bool, typer.Option("--shuffle-labels", help="Control run on shuffled training labels: nothing can be learned.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the results; default: ./reproduce/TABLE-PROFILE, followed by the data sets and by a short code "
        "for other options where such are given: each selection has its own folder."
    ),
]
MaxConcurrent = Annotated[int | None, typer.Option(min=1, help="Trials at a time; default: all that fit.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List rows, runs and gaps; start nothing.")]


def reproduce(
    table: Table,
    dataset: Dataset = None,
    category: Category = None,
    known_class: KnownClass = None,
    method: Method = None,
    n_anomalies: NAnomalies = None,
    seeds: Seeds = "42,43,44",
    profile: Profile = None,
    data_root: DataRoot = None,
    assignments: Assignments = None,
    shuffle_labels: Shuffle = False,
    out: Out = None,
    max_concurrent: MaxConcurrent = None,
    study_root: opt.StudyRoot = None,
    dry_run: DryRun = False,
    as_json: opt.AsJson = False,
) -> None:
    """Run a table of the paper again, our numbers beside its. The same command goes on where it was stopped."""
    from sctune.reproduce.cells import Asked
    from sctune.reproduce.plan import ReproduceOptions, make_plan, prepare_elpv
    from sctune.reproduce.run import run_table

    anomalies = () if n_anomalies is None else _numbers("--n-anomalies", n_anomalies, 1)
    asked = Asked(tuple(dataset or ()), tuple(category or ()), tuple(known_class or ()), anomalies)
    options = ReproduceOptions(
        table=table,
        asked=asked,
        methods=tuple(method or ()),
        seeds=_numbers("--seeds", seeds, 0),
        profile=profile,
        data_root=data_root,
        overrides=parse_assignments(assignments or []),
        out=out,
        shuffled=shuffle_labels,
        study_root=study_root,
        max_concurrent=max_concurrent,
    )
    plan = make_plan(options)
    if dry_run:
        emit(plan.to_dict() if as_json else None, plan.lines)
        return
    plan = prepare_elpv(plan, say)
    say(plan.lines)
    outcome = run_table(plan, say, messages)
    _show(outcome, as_json)
    if outcome.stopped:
        say(["stopped; the same command goes on"])
        raise typer.Exit(3)


def _show(outcome: TableOutcome, as_json: bool) -> None:
    from sctune.reproduce.tables import notes, terminal_tables

    if as_json:
        emit(outcome.to_dict(), [])
        return
    header = outcome.plan.header
    print("\n".join(header.lines))
    Console().print(*terminal_tables(outcome.results), sep="\n")
    gaps = [f"missing: {gap}" for gap in outcome.missing]
    lines = [f"note: {line}" for line in notes(header, outcome.results)]
    print("\n".join([*lines, *gaps, f"written to {outcome.plan.out}"]))


def _numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text) or any(not least <= int(part) < 2**32 for part in text.split(",")):
        example = "42,43,44" if least == 0 else "1,10"
        raise ConfigError(f"{option} {text!r}: give whole numbers from {least} on with commas, for example {example}")
    return tuple(int(part) for part in text.split(","))
