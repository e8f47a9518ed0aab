"""The commands that make pages to compare on: `sctune compare`, `diff` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit, print_lines, say
from sctune.errors import ConfigError
from sctune.paths import studies_folder


def compare(
    study: Annotated[list[str], typer.Argument(help="Names of one study or several.")],
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    as_json: opt.AsJson = False,
) -> None:
    """Studies side by side: best values, states, data, cost, and whether their best trials can be told apart."""
    from sctune.pages.compare import compare_studies

    found = compare_studies(_root(study_root), study, storage)
    if as_json:
        emit(found.to_dict(), [])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="studies" if len(study) > 1 else None)
    for column in ("", *(view.name for view in found.views)):
        table.add_column(Text(column), overflow="fold")
    for row in found.rows():
        table.add_row(*map(Text, row))
    Console().print(table)
    print_lines([pair.line for pair in found.pairs])
    say([f"warning: {line}" for line in found.warnings])


def diff(
    study: opt.StudyName,
    first: Annotated[int, typer.Argument(min=0, metavar="TRIAL", help="Number of a trial with a checkpoint.")],
    second: Annotated[int, typer.Argument(min=0, metavar="TRIAL", help="Number of another one.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the files; default: diff/ in the study's.")] = None,
    task: Annotated[str | None, typer.Option(help="Task of the study by its key; default: the first.")] = None,
    rate: Annotated[float, typer.Option(help="False-alarm rate of the thresholds.")] = 0.01,
    shown: Annotated[int, typer.Option(min=1, max=60, help="Most images in the picture.")] = 12,
    study_root: opt.StudyRoot = None,
    as_json: opt.AsJson = False,
) -> None:
    """Images whose verdict flips between two trials, with saliency and heat map of both side by side."""
    from sctune.files import check_writable
    from sctune.pages.diff import DiffOptions, diff_trials, summary_lines

    folder = None if out is None else out.expanduser().absolute()
    if folder is not None:
        check_writable(folder, "--out")
    report = diff_trials(_root(study_root), study, first, second, DiffOptions(task, folder, rate, shown), say)
    say([f"warning: {line}" for line in report.warnings])
    if as_json:
        emit(report.to_dict(), [])
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    changes = Table("field", f"trial {first}", f"trial {second}", title="what differs")
    for name, values in report.changes.items():
        changes.add_row(*map(Text, (name, *map(str, values))))
    console.print(changes)
    print_lines(summary_lines(report))
    table = Table()
    for column in ("image", "is", f"score {first}", f"score {second}", "called", "rank"):
        table.add_column(column, overflow="fold")
    for one in report.flips or report.moves:
        called = [("normal", "anomalous")[verdict] for verdict in one.verdicts]
        cells = [one.path, ("normal", "anomalous")[one.label], *(f"{score:.4f}" for score in one.scores)]
        table.add_row(*map(Text, (*cells, " -> ".join(called), f"{one.ranks[0]:g} -> {one.ranks[1]:g}")))
    console.print(table)
    print_lines([str(path) for path in report.files])


def report(
    study: opt.StudyName,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    as_json: opt.AsJson = False,
) -> None:
    """One study as one self-contained page that needs no network: history, curves, tables, gallery, cost."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: give a file name that ends in .html")
    from sctune.files import check_writable
    from sctune.pages.report import write_report

    target = out.expanduser().absolute()
    check_writable(target.parent, "--out")
    made = write_report(_root(study_root), study, target, storage)
    say([f"warning: {line}" for line in made.warnings])
    emit(made.to_dict() if as_json else None, [str(made.path)])


def _root(study_root: Path | None) -> Path:
    return (study_root or studies_folder()).expanduser().absolute()
