"""`sctune confirm`: from the best trials of a search to numbers that can be trusted."""

from __future__ import annotations

from typing import Annotated

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit, messages, say
from sctune.paths import studies_folder


def confirm(
    study: opt.StudyName,
    top: Annotated[int, typer.Option(min=1, help="Best full runs that are trained again.")] = 3,
    n_seeds: Annotated[int, typer.Option(min=1, help="Fresh seeds for each of them.")] = 5,
    false_alarm_rate: Annotated[float, typer.Option(help="Wanted share of normal images called anomalous.")] = 0.01,
    again: Annotated[
        bool, typer.Option("--again", help="Once more, on other seeds: one more look at the test.")
    ] = False,
    rescored: Annotated[bool, typer.Option("--rescored", help="Also with what `sctune rescore` found better.")] = False,
    refit: opt.Refit = None,
    ensemble: opt.Ensemble = 1,
    address: opt.Address = None,
    max_concurrent: opt.MaxConcurrent = None,
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    as_json: opt.AsJson = False,
) -> None:
    """Train the best again on fresh seeds, beside the paper's default; then open the test images, once."""
    from sctune.confirm.results import confirmation_lines
    from sctune.confirm.run import ConfirmOptions, run_confirm

    root = (study_root or studies_folder()).expanduser().absolute()
    options = ConfirmOptions(top, n_seeds, false_alarm_rate, again, rescored, refit, ensemble, address, max_concurrent)
    outcome = run_confirm(root, study, options, say, messages, storage)
    say([f"warning: {line}" for line in outcome.warnings])
    if outcome.confirmation is None:
        more = "".join([" --again" if again else "", " --rescored" if rescored else "", options.form_words])
        say([f"stopped; go on with the same command: sctune confirm {study} --top {top} --n-seeds {n_seeds}{more}"])
        raise typer.Exit(3)
    times = "once" if outcome.looks == 1 else f"{outcome.looks} times"
    lines = [
        *confirmation_lines(outcome.confirmation),
        f"the test images of this study have been looked at {times}",
        f"next: sctune deploy {study}{options.form_words}",
    ]
    document = {**outcome.confirmation.model_dump(mode="json"), "looks": outcome.looks}
    emit(document if as_json else None, lines)


def rescore(
    study: opt.StudyName,
    trial: Annotated[int | None, typer.Option(min=0, help="Trial number; default: the best.")] = None,
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    as_json: opt.AsJson = False,
) -> None:
    """Try other ways to score with a trained trial (top-K share, patches, weights of heads and scales), untrained."""
    from sctune.confirm.rescore import rescored_lines, run_rescore

    root = (study_root or studies_folder()).expanduser().absolute()
    found = run_rescore(root, study, trial, say, storage)
    say([f"warning: {line}" for line in found.warnings])
    emit(found.to_dict() if as_json else None, [*rescored_lines(found), *found.files])
