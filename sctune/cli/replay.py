"""`sctune replay`: what another scheduler would have made of a study."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from sctune.cli import options as opt
from sctune.cli.output import emit, print_lines
from sctune.cli.schedulers import asked_schedulers
from sctune.errors import ConfigError
from sctune.paths import studies_folder


def replay(
    study: Annotated[str, typer.Argument()],
    scheduler: Annotated[str | None, typer.Option(help="Names with commas; default: the study's own.")] = None,
    factor: Annotated[str | None, typer.Option(help="Whole numbers with commas; default: the study's own.")] = None,
    grace: Annotated[
        str | None, typer.Option(help="First rungs in epochs, with commas; default: the study's own.")
    ] = None,
    stop_confidence: Annotated[str | None, typer.Option(help="From .5 to below 1, with commas; likewise.")] = None,
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    as_json: opt.AsJson = False,
) -> None:
    """What other schedulers would have stopped, saved and lost in a study, from its stored curves; trains nothing.

    A curve ends where its trial was stopped: what a more patient scheduler would have seen of it cannot be known, and
    is told so. Shows also what the trials of `--audit` tell.
    """
    from sctune.search.study.replay import curves_of
    from sctune.search.study.replayed import as_it_was, audit_lines, audit_of, differing, replayed, table_of
    from sctune.search.study.stored import stored_labels
    from sctune.search.study.study import Study

    stored = Study.open((study_root or studies_folder()).expanduser().absolute(), study, storage)
    manifest = stored.manifest
    asked = asked_schedulers(manifest.scheduler, scheduler, factor, grace, stop_confidence)
    # a study that was searched without has no paired errors in its record
    new = manifest.scheduler.stop_confidence is None and any(one.stop_confidence is not None for one in asked)
    labels, missing = stored_labels(manifest) if new else (None, None)
    try:
        curves = curves_of(manifest, stored.record.load(), labels)
    finally:
        stored.record.close()
    try:
        rows = [as_it_was(manifest, curves)]
        others, found = differing(curves, rows[0]), audit_of(manifest, curves)
        said = "what happened" if not others else f"not what happened to trials {', '.join(map(str, others))}"
        told = [
            f"replayed with its own scheduler the study gives {said}",
            *([] if found is None else audit_lines(found)),
        ]
    except ConfigError as problem:  # another package's, which is not installed here
        if not asked:
            raise
        rows, others, found, told = [], None, None, [f"not replayed with its own scheduler: {problem}"]
    rows += [replayed(manifest, curves, one) for one in asked]
    told += [] if missing is None else [f"without the paired errors of full runs, so more is stopped: {missing}"]
    document = {
        "format_version": 1,
        "study": study,
        "agrees": None if others is None else not others,
        "differing": others,
        "schedulers": [row.to_dict() for row in rows],
        "audit": None if found is None else found.to_dict(),
    }
    if as_json:
        emit(document, [])
    else:
        _show(f"study {study}: {len(curves.by_number)} trials", *table_of(rows, stored.objective))
        print_lines(told)


def _show(title: str, head: list[str], cells: list[list[str]]) -> None:
    table = Table(title=title, box=SIMPLE, padding=0)
    for place, column in enumerate(head):
        table.add_column(column, overflow="fold", no_wrap=place > 0, min_width=0 if place else 15)
    for line in cells:
        table.add_row(*line)
    Console().print(table)
