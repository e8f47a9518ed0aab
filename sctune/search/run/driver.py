"""From the outside: `run_search` and `resume`, with the checks and the connection to Ray around a launch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sctune.errors import ConfigError, StudyError, TrackingError
from sctune.paths import studies_folder
from sctune.search.cluster.connection import (
    Resources,
    check_temporary_folder,
    connect,
    exposure,
    nodes_alive,
    plan_resources,
)
from sctune.search.cluster.node_check import CheckedNodes, check_nodes
from sctune.search.plan.options import MOST_SHARE, Gpus, SearchOptions
from sctune.search.plan.order import idle_lines, in_order

if TYPE_CHECKING:
    from sctune.data.split import Split
    from sctune.search.plan.plan import Plan
    from sctune.search.study.manifest import ResourceSpec, StudyManifest
    from sctune.search.study.result import StudyResult
    from sctune.search.study.study import Study


PlanHook = Callable[["Plan", Resources], None]


def run_search(
    options: SearchOptions,
    console: Console | None = None,
    on_plan: PlanHook | None = None,
    notify: Sequence[str] = (),
) -> StudyResult:
    """Search from options to a finished or stopped study; what `sctune search` does.

    on_plan is shown the plan before the first trial; notify: commands and URLs that are told the end. Raises
    SctuneError with one line for bad input (nothing is left behind), AllTrialsFailedError when no trial succeeded.
    """
    started = time.monotonic()
    with planned(options, console) as (plan, resources):
        cluster = on_cluster(options.address)
        return _first_launch(plan, resources, on_plan, options.time_budget_s, console, started, notify, cluster)


@contextmanager
def planned(options: SearchOptions, console: Console | None = None) -> Iterator[tuple[Plan, Resources]]:
    """A plan that passed all checks, and the session that it was made for. Writes nothing but the image cache.

    console: told what takes a while. Without an address the checks come before Ray is started, so that bad input is
    told at once.
    """
    import torch

    from sctune.search.plan.plan import make_plan

    check_share(options.share, options.address)
    if options.address is None:
        check_temporary_folder()
    plan = make_plan(options, has_gpu=torch.cuda.is_available()) if options.address is None else None
    with session(options.address) as warnings:
        if plan is None:
            import ray

            plan = make_plan(options, has_gpu=ray.cluster_resources().get("GPU", 0) > 0)
        plan = replace(plan, warnings=(*plan.warnings, *warnings))
        gpus, most = options.gpus_per_trial, options.max_concurrent
        plan, resources = _with_resources(plan, options.address, gpus, most, console)
        yield in_order(plan, options, resources.concurrent), resources


def run_plan(
    plan: Plan,
    *,
    address: str | None = None,
    max_concurrent: int | None = None,
    console: Console | None = None,
    on_plan: PlanHook | None = None,
) -> StudyResult:
    """Run a plan that was made without the options of a search (`sctune confirm`); as `run_search`."""
    started = time.monotonic()
    with session(address) as warnings:
        plan = replace(plan, warnings=(*plan.warnings, *warnings))
        # 0 is an answer too: what was searched without a GPU is trained without one again, as in a resume
        own = plan.manifest.resources
        plan, resources = _with_resources(plan, address, "auto" if own.packed else own.gpus, max_concurrent, console)
        return _first_launch(plan, resources, on_plan, None, console, started, (), on_cluster(address))


def _first_launch(
    plan: Plan,
    resources: Resources,
    on_plan: PlanHook | None,
    budget_s: float | None,
    console: Console | None,
    started: float,
    notify: Sequence[str],
    cluster: bool,
) -> StudyResult:
    from sctune.search.plan.locations import mark_storage
    from sctune.search.run.launch import RunningLaunch
    from sctune.search.run.session import run_launch
    from sctune.search.study.content import keep_files
    from sctune.search.study.study import Study
    from sctune.tracking.server import check_tracking

    if on_plan is not None:
        on_plan(plan, resources)
    # the plan has written nothing: a database gets its tables here
    check_tracking(plan.manifest.tracking_uri)
    study = Study.create(plan.study_root, plan.manifest)
    with study.lock():
        keep_files(study.folder, plan.splits)
        mark_storage(study.manifest)
        launch = RunningLaunch(study, plan.space, plan.splits, resources, budget_s, console, started, cluster)
        return run_launch(launch, notify)


def _with_resources(
    plan: Plan, address: str | None, gpus: Gpus, max_concurrent: int | None, console: Console | None
) -> tuple[Plan, Resources]:
    wanted = plan.manifest.resources
    # at first a whole GPU each, of which a measure makes a share
    whole = None if isinstance(gpus, str) else gpus
    checked = checked_nodes(plan.manifest, plan.splits, address, whole)
    resources = plan_resources(wanted.cpus, whole, max_concurrent, address is not None, checked.left_out)
    lines, spec = checked.lines, spec_of(wanted, resources)
    if isinstance(gpus, str):
        from sctune.search.run.sharing import shared

        study = plan.manifest, plan.space, plan.splits
        resources, spec, more = shared(*study, spec, resources, max_concurrent, console)
        lines = (*lines, *more)
    manifest = plan.manifest.model_copy(update={"resources": spec})
    return replace(plan, manifest=manifest, warnings=(*plan.warnings, *lines)), resources


def spec_of(asked: ResourceSpec, resources: Resources) -> ResourceSpec:
    """What the manifest says of resources."""
    return asked.model_copy(
        update={
            "cpus": resources.cpus,
            "gpus": resources.gpus,
            "max_concurrent": resources.concurrent,
            "packed": resources.packed,
        }
    )


def checked_nodes(
    manifest: StudyManifest, splits: Mapping[str, Split], address: str | None, gpus: float | None
) -> CheckedNodes:
    """Which nodes cannot run trials; ClusterError where none can. One machine of our own is not asked.

    gpus: of a trial; None: one where there are any.
    """
    if not on_cluster(address):
        return CheckedNodes()
    from sctune.search.run.wanted import wanted_by

    return check_nodes(wanted_by(manifest, splits, gpus))


def check_share(share: float | None, address: str | None) -> None:
    """Raises ConfigError for a share of a Ray that the search starts for itself, or one that is no weight."""
    if share is not None and not 0 <= share <= MOST_SHARE:
        raise ConfigError(f"--share {share:g}: give a weight from 0 to {MOST_SHARE:g}")
    if share and address is None:
        raise ConfigError(
            f"--share {share:g}: without --address a search has a Ray of its own, which nobody shares; give the "
            "--address of a cluster, or leave out --share"
        )


def on_cluster(address: str | None) -> bool:
    """Whether trials may run on other machines than this one; call it when connected."""
    return address is not None or len(nodes_alive()) > 1


def resume(
    name: str,
    *,
    study_root: Path | None = None,
    more_trials: int = 0,
    address: str | None = None,
    max_concurrent: int | None = None,
    gpus_per_trial: Gpus = None,
    share: float | None = None,
    time_budget_s: float | None = None,
    max_disk: int | None = None,
    storage: str | None = None,
    storage_path: str | None = None,
    tracking_uri: str | None = None,
    objective: str | None = None,
    console: Console | None = None,
    notify: Sequence[str] = (),
) -> StudyResult:
    """Go on with a study: unfinished trials first, from their last checkpoint, then new ones up to the budget.

    more_trials: added to the study's number of trials, or to those that it has where it ended by itself. time_budget_s:
    over all launches; None: the study's own, infinity: none any more. storage: URL of the record, where the study was
    begun on another machine or the URL holds the password. gpus_per_trial: from now on; None: as it was. storage_path,
    tracking_uri: places of checkpoints and runs from now on; None: as they are. max_disk: bytes; share: weight on a
    cluster; both replace the study's own. objective: None, or the study's own. Raises ConfigError for a share without a
    cluster, StudyError for a missing study, one that runs, one of another objective, or one whose places are not seen
    from here; ChangedDataError where its images are not those that it began with.
    """
    started = time.monotonic()
    check_share(share, address)
    from sctune.search.plan.locations import check_seen, move
    from sctune.search.run.launch import RunningLaunch
    from sctune.search.run.session import run_launch
    from sctune.search.study.database_check import check_database
    from sctune.search.study.published import resumed_splits
    from sctune.search.study.study import Study

    study = Study.open((study_root or studies_folder()).expanduser().absolute(), name, storage)
    if study.storage is not None:
        check_database(study.storage)
    with study.lock():
        check_versions(study)
        _check_objective(study, objective)
        move(study, storage_path, tracking_uri)
        check_seen(study)
        splits, lines = resumed_splits(study.manifest, study.folder)
        _tell(lines, console)
        _warn_about_tracking(study, console)
        if more_trials:
            _warn_about_looks(study, console)
        budget_s = time_budget_s or study.manifest.time_budget_s
        seconds_left = _budget_left(study, budget_s)
        with session(address) as warnings:
            _tell(warnings, console)
            resources = _resources_again(study, splits, address, max_concurrent, gpus_per_trial, console)
            _widen(study, max_disk, more_trials, time_budget_s, share)
            space = study.manifest.build_space()
            cluster = on_cluster(address)
            launch = RunningLaunch(study, space, splits, resources, seconds_left, console, started, cluster)
            return run_launch(launch, notify)


def _widen(
    study: Study, max_disk: int | None, more_trials: int, time_budget_s: float | None, share: float | None
) -> None:
    if share is not None:
        study.with_share(share)
    if max_disk is not None:
        study.with_max_disk(max_disk)
    if more_trials:
        study.with_more_trials(more_trials)
    if time_budget_s is not None:
        study.with_time_budget(None if math.isinf(time_budget_s) else time_budget_s)


def _resources_again(
    study: Study,
    splits: Mapping[str, Split],
    address: str | None,
    max_concurrent: int | None,
    gpus: Gpus,
    console: Console | None,
) -> Resources:
    """Those of a resumed study; what is left out, and what will stay idle, is told."""
    manifest, asked = study.manifest, study.manifest.resources
    auto = asked.packed if gpus is None else isinstance(gpus, str)
    number = asked.gpus if gpus is None or isinstance(gpus, str) else gpus
    whole = None if auto else number
    checked = checked_nodes(manifest, splits, address, whole)
    _tell(list(checked.lines), console)
    at_a_time = max_concurrent or asked.asked_concurrent
    resources = plan_resources(asked.cpus, whole, at_a_time, address is not None, checked.left_out)
    spec = asked.model_copy(update={"gpus": resources.gpus, "packed": False})
    if auto:
        from sctune.search.run.sharing import packing_of, shared

        space = manifest.build_space()
        resources, spec, lines = shared(manifest, space, splits, asked, resources, at_a_time, console)
        _tell(list(lines), console)
        _tell(packing_of(spec, resources).lines(), console)
    if gpus is not None or spec.needs != asked.needs:
        study.with_resources(spec)
    _tell(idle_lines(manifest.look_behind, resources.concurrent), console)
    return resources


def _warn_about_tracking(study: Study, console: Console | None) -> None:
    """A study goes on without MLflow: the record holds what it lacks."""
    from sctune.tracking.server import check_tracking

    try:
        check_tracking(study.manifest.tracking_uri)
    except TrackingError as problem:
        text = f"{problem}; the study goes on, and `sctune sync {study.name}` sends later what it lacks"
        (console or Console(stderr=True)).print(text, markup=False, highlight=False, soft_wrap=True)


def _warn_about_looks(study: Study, console: Console | None) -> None:
    """Who has seen the test numbers and searches on may choose by them, if only by when to stop."""
    from sctune.search.study.ledger import ledger_line, looks

    rows = looks(study)
    if rows:
        _tell([f"{ledger_line(rows)}; what is searched from here on is no longer blind to them"], console)


def check_versions(study: Study) -> None:
    from sctune.trial.building import package_versions

    here, then = package_versions(), study.manifest.versions
    changed = [f"{name} {then[name]} then, {here.get(name)} now" for name in then if here.get(name) != then[name]]
    if changed:
        raise StudyError(
            f"study {study.name} was begun with other versions ({', '.join(changed)}), so its trials could not be "
            "compared; install those versions, or start a new study"
        )


def _check_objective(study: Study, asked: str | None) -> None:
    """ConfigError where it is of a package that is missing here, StudyError where another one is asked for."""
    own = study.objective.name
    if asked is not None and asked != own:
        raise StudyError(
            f"study {study.name} is searched by {own}, and --objective {asked} would compare its trials by another "
            f"figure; leave it out, or start a new study with --objective {asked}"
        )


@contextmanager
def session(address: str | None) -> Iterator[list[str]]:
    """A connection to Ray; a local cluster that it started ends with it. Gives warnings about what is reachable."""
    started = connect(address)
    try:
        yield exposure(address)
    finally:
        if started:
            import ray

            ray.shutdown()


def _tell(warnings: list[str], console: Console | None) -> None:
    for line in warnings:
        (console or Console(stderr=True)).print(line, markup=False, highlight=False, soft_wrap=True)


def _budget_left(study: Study, budget_s: float | None) -> float | None:
    """Seconds that the study may still take; StudyError when none are left. None, infinity: no limit."""
    if budget_s is None or math.isinf(budget_s):
        return None
    spent = sum(launch.seconds or 0.0 for launch in study.manifest.launches)
    if spent >= budget_s:
        raise StudyError(
            f"the time budget of {budget_s:g} s is spent ({spent:.0f} s over {len(study.manifest.launches)} launches); "
            f"give a larger one with `sctune resume {study.name} --time-budget 2h`, or none to have no limit"
        )
    return budget_s - spent
