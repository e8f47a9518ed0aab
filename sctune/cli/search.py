"""`sctune search` and `sctune resume`."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctune.cli import options as opt
from sctune.cli.operate import background, study_name
from sctune.cli.output import emit, messages, say
from sctune.errors import ConfigError
from sctune.metrics.objective import DEFAULT
from sctune.search.plan.options import SearchOptions
from sctune.search.run.notify import read_hooks

if TYPE_CHECKING:
    from sctune.search.study.result import StudyResult


OPTION_FLAGS = {"assignments": "set"}
NOT_OF_THE_STUDY = {"notify", "detach", "dry_run", "as_json"}
"""Parameters of `search` about this command alone; all others are fields of SearchOptions."""


def search(
    context: typer.Context,
    data: opt.Data = None,
    normal: opt.Normal = None,
    anomalous: opt.Anomalous = None,
    category: opt.Category = None,
    setting: opt.Setting = "general",
    known_class: opt.KnownClass = None,
    n_anomalies: opt.NAnomalies = None,
    seeds: opt.Seeds = None,
    selection: opt.Selection = "auto",
    objective: opt.Objective = DEFAULT,
    partition_seed: opt.PartitionSeed = 0,
    skip_corrupt: opt.SkipCorrupt = False,
    allow_duplicates: opt.AllowDuplicates = False,
    space: opt.Space = "threshold_patch",
    method: opt.Method = None,
    profile: opt.Profile = None,
    assignments: opt.Assignments = None,
    references: opt.References = None,
    sampler: opt.Sampler = None,
    sampler_seed: opt.SamplerSeed = 0,
    prior: opt.Prior = None,
    look_behind: opt.LookBehind = None,
    free_running: opt.FreeRunning = False,
    trials: opt.Trials = None,
    replicates: opt.Replicates = None,
    time_budget: opt.TimeBudget = None,
    min_gain: opt.MinGain = None,
    scheduler: opt.Scheduler = None,
    grace: opt.Grace = None,
    factor: opt.Factor = None,
    stop_confidence: opt.StopConfidence = None,
    audit: opt.Audit = 0.0,
    address: opt.Address = None,
    max_concurrent: opt.MaxConcurrent = None,
    share: opt.Share = None,
    cpus_per_trial: opt.CpusPerTrial = None,
    gpus_per_trial: opt.GpusPerTrial = None,
    publish: opt.Publish = "auto",
    publish_through: opt.PublishThrough = "auto",
    name: opt.Name = None,
    owner: opt.Owner = None,
    notes: opt.Notes = None,
    study_root: opt.StudyRoot = None,
    storage: opt.Storage = None,
    storage_path: opt.StoragePath = None,
    checkpoint_interval: opt.CheckpointInterval = 60.0,
    keep_best: opt.KeepBest = 3,
    max_disk: opt.MaxDisk = None,
    tracking_uri: opt.TrackingUri = None,
    notify: opt.Notify = None,
    detach: opt.Detach = False,
    dry_run: opt.DryRun = False,
    as_json: opt.AsJson = False,
) -> None:
    """Search a space: train, compare, stop early, and log every trial and the best model to MLflow."""
    hooks, options = read_hooks(notify or ()), SearchOptions.from_command(_given(context))
    background_name = study_name(name, space) if detach else None
    _begin(context, options, hooks, background_name, dry_run, as_json)


def _begin(
    context: typer.Context,
    options: SearchOptions,
    hooks: tuple[str, ...],
    background_name: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """background_name: of a study that another process runs."""
    if dry_run:
        _plan_only(options, as_json)
    elif background_name is not None:
        background(context, background_name, options.study_root, options.address, hooks)
    else:
        _run(options, hooks, as_json)


def _given(context: typer.Context) -> dict[str, Any]:
    return {OPTION_FLAGS.get(key, key): value for key, value in context.params.items() if key not in NOT_OF_THE_STUDY}


def resume(
    context: typer.Context,
    study: opt.StudyName,
    trials: Annotated[str | None, typer.Option(help="More trials for a finished study: +20.")] = None,
    time_budget: Annotated[
        str | None, typer.Option(help="For example 2h, or none; over all launches; default: the study's own.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster, or auto; default: this machine.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
    gpus_per_trial: Annotated[
        str | None, typer.Option(help="From now on, as `search` has it; default: as it was.")
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Weight on a shared cluster; 0: takes what it gets; default: as it was."),
    ] = None,
    max_disk: opt.MaxDisk = None,
    notify: opt.Notify = None,
    detach: opt.Detach = False,
    study_root: opt.StudyRoot = None,
    storage: opt.StoredAt = None,
    storage_path: Annotated[str | None, typer.Option(help="Checkpoints from now on; default: where they are.")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow from now on; default: where it is.")] = None,
    objective: Annotated[str | None, typer.Option(help="The study's own; it cannot be changed.")] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Go on with a study: unfinished trials from their last checkpoint, then new ones."""
    more = 0
    if trials is not None:
        if not re.fullmatch(r"\+\d+", trials):
            raise ConfigError(f"--trials {trials!r}: write how many more, for example +20")
        more = int(trials)
    seconds = math.inf if time_budget == "none" else opt.duration(time_budget, "--time-budget")
    hooks = read_hooks(notify or ())
    if detach:
        background(context, study, study_root, address, hooks)
        return
    from sctune.search.run.driver import resume as resume_study

    result = resume_study(
        study,
        study_root=study_root,
        more_trials=more,
        address=address,
        max_concurrent=max_concurrent,
        gpus_per_trial=opt.gpus(gpus_per_trial),
        share=share,
        time_budget_s=seconds,
        max_disk=opt.size(max_disk, "--max-disk"),
        storage=storage,
        storage_path=storage_path,
        tracking_uri=tracking_uri,
        objective=objective,
        console=messages,
        notify=hooks,
    )
    _finish(result, as_json)


def _plan_only(options: SearchOptions, as_json: bool) -> None:
    from sctune.search.run.dryrun import dry_run

    report = dry_run(options)
    emit(report.to_dict() if as_json else None, report.lines)


def _run(options: SearchOptions, hooks: tuple[str, ...], as_json: bool) -> None:
    from sctune.search.run.driver import run_search
    from sctune.search.run.plan_lines import plan_lines

    _finish(run_search(options, messages, lambda plan, resources: say(plan_lines(plan, resources)), hooks), as_json)


def _finish(result: StudyResult, as_json: bool) -> None:
    from sctune.search.study.result import summary_lines

    lines = summary_lines(result)
    if result.way_on is not None:
        lines.append(result.way_on)
    lines.append(f"look: sctune status {result.name}; sctune ui; files in {result.folder}")
    lines += [] if result.verdict is None else [result.verdict]
    emit(result.to_dict() if as_json else None, lines)
    if result.way_on is not None:
        raise typer.Exit(3)
