"""`sctune deploy` and `sctune rollback`: which model serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit, say
from sctune.errors import ConfigError
from sctune.paths import home, studies_folder

Alias = Annotated[str, typer.Option(help="The alias that is moved.")]


def deploy(
    study: opt.StudyName,
    name: Annotated[str | None, typer.Option(help="Registered model; default: the data's name.")] = None,
    alias: Alias = "champion",
    category: Annotated[str | None, typer.Option(help="Which model, where the study has one per category.")] = None,
    candidate: Annotated[
        str | None, typer.Option(help="Another tested configuration than the winner, for example gaussian.")
    ] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Wanted share of normal images called anomalous.")] = 0.01,
    best_f1: Annotated[
        bool, typer.Option("--best-f1", help="Threshold of best F1 on held-out anomalies instead.")
    ] = False,
    acceptance: Annotated[
        str | None, typer.Option(help="Labelled images that no model has seen; default: the study's test images.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="The use is one that the data's licence allows.")
    ] = False,
    max_latency: Annotated[float, typer.Option(min=0, help="Milliseconds of an image, 95 % of them.")] = 1000.0,
    refit: opt.Refit = None,
    ensemble: opt.Ensemble = 1,
    address: opt.Address = None,
    force: Annotated[str | None, typer.Option(metavar="REASON", help="Promote although a step failed; kept.")] = None,
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    as_json: opt.AsJson = False,
) -> None:
    """Register the confirmed model; it becomes the champion where the promotion gate passes, step by step."""
    from sctune.confirm.deploy import DeployOptions, run_deploy

    if force is not None and not force.strip():
        raise ConfigError("--force needs a reason, which is written down")
    source = acceptance
    if source is not None and source != "elpv" and "=" not in source:
        source = str(Path(source).expanduser().absolute())
    rule = "best-f1" if best_f1 else false_alarm_rate
    options = DeployOptions(
        name, alias, category, rule, source, accept_licence, max_latency, force, candidate, refit, ensemble, address
    )
    outcome = run_deploy((study_root or studies_folder()).expanduser().absolute(), study, options, say, storage)
    say([f"warning: {line}" for line in outcome.warnings])
    place = f"models:/{outcome.model.name}"
    if outcome.move is not None:
        before = "" if outcome.move.before is None else f"; before: version {outcome.move.before} (sctune rollback)"
        last = f"{place}@{alias} is version {outcome.model.version} now{before}"
    else:
        names = ", ".join(step.name for step in outcome.failed)
        last = f"{place}@{alias} stays as it was: {names} failed; version {outcome.model.version} is registered"
    lines = [*(step.line() for step in outcome.steps), outcome.threshold, last]
    emit(outcome.to_dict() if as_json else None, lines)
    if outcome.move is None:
        raise typer.Exit(2)


def rollback(
    name: Annotated[str | None, typer.Argument(help="Registered model; default: the only one with the alias.")] = None,
    alias: Alias = "champion",
    tracking_uri: opt.TrackingUri = None,
    as_json: opt.AsJson = False,
) -> None:
    """Let the champion be the one that it was before."""
    from sctune.deploy.registry import only_model
    from sctune.deploy.registry import rollback as roll_back
    from sctune.errors import SctuneError, TrackingError
    from sctune.tracking.choice import resolve_tracking_uri
    from sctune.tracking.server import check_tracking, mlflow_client, safe_uri, scrub

    uri = resolve_tracking_uri(tracking_uri, home())
    check_tracking(uri)
    client = mlflow_client(uri)
    try:
        move = roll_back(client, name or only_model(client, alias), alias)
    except SctuneError:
        raise
    except Exception as problem:  # whatever MLflow raises
        raise TrackingError(f"the registry at {safe_uri(uri)} refused: {scrub(problem, uri)}") from None
    text = f"models:/{move.name}@{alias} is version {move.version} again; before: version {move.before}"
    emit({"model": move.name, **move.to_dict()} if as_json else None, [text])
