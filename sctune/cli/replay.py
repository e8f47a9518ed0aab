"""`sctune replay`: what another scheduler would have made of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from sctune.cli import options as opt
from sctune.cli.output import emit, print_lines
from sctune.cli.schedulers import asked_schedulers
from sctune.errors import ConfigError
from sctune.paths import studies_folder

if TYPE_CHECKING:
    from sctune.search.study.manifest import StudyManifest
    from sctune.search.study.replay import Curves
    from sctune.search.study.replayed import Audit, Replayed


def replay(
    study: Annotated[str, typer.Argument()],
    scheduler: Annotated[str | None, typer.Option(help="Names with commas; default: the study's own.")] = None,
    factor: Annotated[str | None, typer.Option(help="Whole numbers with commas; default: the study's own.")] = None,
    grace: Annotated[
        str | None, typer.Option(help="First rungs in epochs, with commas; default: the study's own.")
    ] = None,
    stop_confidence: Annotated[str | None, typer.Option(help="From .5 to below 1, with commas; likewise.")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Names with commas: when each would have come to the study's own trials.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Searches of each --sampler.")] = 100,
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    as_json: opt.AsJson = False,
) -> None:
    """What other schedulers would have stopped, saved and lost in a study, from its stored curves; trains nothing.

    A curve ends where its trial was stopped: what a more patient scheduler would have seen of it is not known, and told
    so. Shows what trials of `--audit` tell, and when a sampler would have come to each of the trials that are there.
    """
    from sctune.search.simulate import of_study
    from sctune.search.study.replay import curves_of
    from sctune.search.study.replayed import replayed, table_of
    from sctune.search.study.stored import stored_labels
    from sctune.search.study.study import Study

    stored = Study.open((study_root or studies_folder()).expanduser().absolute(), study, storage)
    manifest = stored.manifest
    asked = asked_schedulers(manifest.scheduler, scheduler, factor, grace, stop_confidence)
    # a study that was searched without has no paired errors in its record
    new = manifest.scheduler.stop_confidence is None and any(one.stop_confidence is not None for one in asked)
    labels, missing = stored_labels(manifest) if new else (None, None)
    try:
        trials = stored.record.load()
        curves = curves_of(manifest, trials, labels)
    finally:
        stored.record.close()
    rows, others, found, told = _own(manifest, curves, bool(asked or sampler))
    rows += [replayed(manifest, curves, one) for one in asked]
    told += [] if missing is None else [f"without the paired errors of full runs, so more is stopped: {missing}"]
    own = of_study.StoredTrials(manifest, trials) if sampler else None
    tried = [own.resampled(name, repeat) for name in (sampler or "").split(",")] if own else []
    document = {
        "format_version": 1,
        "study": study,
        "agrees": None if others is None else not others,
        "differing": others,
        "schedulers": [row.to_dict() for row in rows],
        "audit": None if found is None else found.to_dict(),
        "samplers": [row.to_dict() for row in tried],
    }
    if as_json:
        emit(document, [])
    else:
        _show(f"study {study}: {len(curves.by_number)} trials", *table_of(rows, stored.objective))
        print_lines(told)
        if own:
            print_lines(["", *of_study.lines_of(own)])
            _show(None, *of_study.table_of(tried, stored.objective))


def _own(
    manifest: StudyManifest, curves: Curves, goes_on: bool
) -> tuple[list[Replayed], list[int] | None, Audit | None, list[str]]:
    """The study as it was, the trials that came out otherwise, its audit, and lines about it.

    goes_on: whether something else is told where its scheduler is another package's, which is not installed here.
    """
    from sctune.search.study.replayed import as_it_was, audit_lines, audit_of, differing

    try:
        row = as_it_was(manifest, curves)
        others, found = differing(curves, row), audit_of(manifest, curves)
    except ConfigError as problem:
        if not goes_on:
            raise
        return [], None, None, [f"not replayed with its own scheduler: {problem}"]
    said = "what happened" if not others else f"not what happened to trials {', '.join(map(str, others))}"
    told = [f"replayed with its own scheduler the study gives {said}"]
    return [row], others, found, told + ([] if found is None else audit_lines(found))


def _show(title: str | None, head: list[str], cells: list[list[str]]) -> None:
    table = Table(title=title, box=SIMPLE, padding=0)
    for place, column in enumerate(head):
        table.add_column(column, overflow="fold", no_wrap=place > 0, min_width=0 if place else 15)
    for line in cells:
        table.add_row(*line)
    Console().print(table)
