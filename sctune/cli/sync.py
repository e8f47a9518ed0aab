"""`sctune sync` and what `sctune status --check` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit
from sctune.paths import studies_folder

if TYPE_CHECKING:
    from sctune.search.reconcile.differences import Agreement

RESUMABLE = 3
FORMAT_VERSION = 1


def sync(
    study: Annotated[str, typer.Argument(help="Study name.")],
    timeout: Annotated[str, typer.Option(help="Longest wait for MLflow, for example 60s or 10m.")] = "5m",
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    as_json: opt.AsJson = False,
) -> None:
    """Send MLflow what it lacks, and mend what differs from the record; exit code 3 where something is left."""
    seconds = opt.duration(timeout, "--timeout") or 0.0
    from sctune.search.reconcile.differences import agreement_lines
    from sctune.search.reconcile.sync import sync as sync_study

    result = sync_study(study, _root(study_root), seconds, storage)
    lines = [*result.done, *(f"{line}; again with `sctune sync {study}`" for line in result.left)]
    if result.agreement is not None:
        lines += agreement_lines(study, result.agreement)
    document = _document(study, result.agreement) | {"done": list(result.done), "left": list(result.left)}
    emit(document if as_json else None, lines)
    if not result.complete:
        raise typer.Exit(RESUMABLE)


def show_check(study: str, study_root: Path | None, storage: str | None, as_json: bool) -> None:
    """Compare, print, and leave with exit code 3 where something differs."""
    from sctune.search.reconcile.check import check_stored
    from sctune.search.reconcile.differences import agreement_lines

    agreement = check_stored(_root(study_root), study, storage)
    emit(_document(study, agreement) if as_json else None, agreement_lines(study, agreement))
    if not agreement.agrees:
        raise typer.Exit(RESUMABLE)


def _document(study: str, agreement: Agreement | None) -> dict[str, Any]:
    document: dict[str, Any] = {"format_version": FORMAT_VERSION, "study": study}
    if agreement is None:
        return {**document, "agrees": None, "differences": []}
    return {
        **document,
        "agrees": agreement.agrees,
        "trials": agreement.trials,
        "references": agreement.references,
        "points": agreement.points,
        "running": agreement.driver,
        "on_the_way": agreement.waiting,
        "notes": list(agreement.notes),
        "differences": [
            {
                "trial": one.trial,
                "kind": one.kind,
                "text": one.text,
                "repair": None if one.repair is None else f"sctune {one.repair} {study}",
            }
            for one in agreement.differences
        ],
    }


def _root(study_root: Path | None) -> Path:
    return (study_root or studies_folder()).expanduser().absolute()
