"""`sctune search` and `sctune resume`."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sctune.cli import options as opt
from sctune.cli.operate import background, study_name
from sctune.cli.output import emit, messages, say
from sctune.config import parse_assignments
from sctune.errors import ConfigError
from sctune.metrics.objective import DEFAULT
from sctune.search.plan.options import SearchOptions
from sctune.search.run.notify import read_hooks

if TYPE_CHECKING:
    from sctune.search.study.result import StudyResult


def search(
    context: typer.Context,
    space: opt.Space = "threshold_patch",
    name: opt.Name = None,
    profile: opt.Profile = None,
    method: opt.Method = None,
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
    trials: opt.Trials = None,
    time_budget: opt.TimeBudget = None,
    sampler: opt.Sampler = None,
    sampler_seed: opt.SamplerSeed = 0,
    scheduler: opt.Scheduler = None,
    gpus_per_trial: opt.GpusPerTrial = None,
    cpus_per_trial: opt.CpusPerTrial = None,
    max_concurrent: opt.MaxConcurrent = None,
    assignments: opt.Assignments = None,
    skip_corrupt: opt.SkipCorrupt = False,
    allow_duplicates: opt.AllowDuplicates = False,
    study_root: opt.StudyRoot = None,
    storage_path: opt.StoragePath = None,
    tracking_uri: opt.TrackingUri = None,
    storage: opt.Storage = None,
    address: opt.Address = None,
    checkpoint_interval: opt.CheckpointInterval = 60.0,
    keep_best: opt.KeepBest = 3,
    max_disk: opt.MaxDisk = None,
    notify: opt.Notify = None,
    detach: opt.Detach = False,
    dry_run: opt.DryRun = False,
    as_json: opt.AsJson = False,
) -> None:
    """Search a space: train, compare, stop early, and log every trial and the best model to MLflow."""
    values = parse_assignments(assignments or [])
    seconds, hooks = opt.duration(time_budget, "--time-budget"), read_hooks(notify or ())
    options = _options(dict(
        space=space, name=name, profile=profile, method=method, data=data, normal=normal, anomalous=anomalous,
        categories=tuple(category or ()), setting=setting, known_classes=tuple(known_class or ()),
        n_anomalies=_amount(n_anomalies), seeds=_seeds(seeds), selection=selection, objective=objective,
        partition_seed=partition_seed, trials=trials, time_budget_s=seconds, sampler=sampler, sampler_seed=sampler_seed,
        scheduler=scheduler, gpus_per_trial=gpus_per_trial, cpus_per_trial=cpus_per_trial,
        overrides=values, skip_corrupt=skip_corrupt, allow_duplicates=allow_duplicates, study_root=study_root,
        storage_path=storage_path, tracking_uri=tracking_uri, storage=storage, address=address, max_disk=max_disk,
        checkpoint_interval=checkpoint_interval, keep_best=keep_best, max_concurrent=max_concurrent,
    ))  # fmt: skip
    if dry_run:
        _plan_only(options, as_json)
    elif detach:
        background(context, study_name(name, space), study_root, address, hooks)
    else:
        _run(options, hooks, as_json)


def resume(
    context: typer.Context,
    study: opt.StudyName,
    trials: Annotated[str | None, typer.Option(help="More trials for a finished study: +20.")] = None,
    time_budget: Annotated[
        str | None, typer.Option(help="For example 2h, or none; over all launches; default: the study's own.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster, or auto; default: this machine.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time.")] = None,
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
    from sctune.search.run.dryrun import plan_lines

    _finish(run_search(options, messages, lambda plan, resources: say(plan_lines(plan, resources)), hooks), as_json)


def _finish(result: StudyResult, as_json: bool) -> None:
    from sctune.search.study.result import summary_lines

    lines = summary_lines(result)
    if result.way_on is not None:
        lines.append(result.way_on)
    lines.append(f"look: sctune status {result.name}; sctune ui; files in {result.folder}")
    emit(result.to_dict() if as_json else None, lines)
    if result.way_on is not None:
        raise typer.Exit(3)


def _options(fields: dict[str, Any]) -> SearchOptions:
    from pydantic import ValidationError

    try:
        return SearchOptions.model_validate(fields)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise ConfigError(f"--{str(first['loc'][0]).replace('_', '-')} {first['input']!r}: {first['msg']}") from None


def _amount(text: str | None) -> int | str | None:
    if text is None or text == "all":
        return text
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--n-anomalies {text!r}: give a number from 1 on, or all")
    return int(text)


def _seeds(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigError(f"--seeds {text!r}: give whole numbers with commas, for example 42,43,44")
    return tuple(int(part) for part in text.split(","))
