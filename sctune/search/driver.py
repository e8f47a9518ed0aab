"""From the outside: `run_search` and `resume`, with the checks and the connection to Ray around a launch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sctune.errors import StudyError
from sctune.paths import studies_folder
from sctune.search.cluster import Resources, check_nodes, connect, plan_resources
from sctune.search.options import SearchOptions

if TYPE_CHECKING:
    from sctune.search.plan import Plan
    from sctune.search.result import StudyResult
    from sctune.search.study import Study


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
    from sctune.search.launch import Launch
    from sctune.search.operate_launch import run_launch
    from sctune.search.study import Study

    with planned(options) as (plan, resources):
        if on_plan is not None:
            on_plan(plan, resources)
        study = Study.create(plan.study_root, plan.manifest)
        with study.lock():
            budget_s = options.time_budget_s
            return run_launch(Launch(study, plan.space, plan.splits, resources, budget_s, console, started), notify)


@contextmanager
def planned(options: SearchOptions) -> Iterator[tuple[Plan, Resources]]:
    """A plan that passed all checks, and the session that it was made for. Writes nothing but the image cache.

    Without an address the checks come before Ray is started, so that bad input is told at once.
    """
    import torch

    from sctune.search.plan import make_plan

    plan = make_plan(options, has_gpu=torch.cuda.is_available()) if options.address is None else None
    with session(options.address):
        if plan is None:
            import ray

            plan = make_plan(options, has_gpu=ray.cluster_resources().get("GPU", 0) > 0)
        yield _with_resources(plan, options)


def _with_resources(plan: Plan, options: SearchOptions) -> tuple[Plan, Resources]:
    wanted = plan.manifest.resources
    growing = options.address is not None
    resources = plan_resources(wanted.cpus, options.gpus_per_trial, options.max_concurrent, growing)
    if options.address is not None or resources.nodes > 1:
        check_nodes(plan.manifest.storage_path, plan.manifest.versions)
    spec = wanted.model_copy(
        update={"cpus": resources.cpus, "gpus": resources.gpus, "max_concurrent": resources.concurrent}
    )
    manifest = plan.manifest.model_copy(update={"resources": spec})
    return replace(plan, manifest=manifest), resources


def resume(
    name: str,
    *,
    study_root: Path | None = None,
    more_trials: int = 0,
    address: str | None = None,
    max_concurrent: int | None = None,
    time_budget_s: float | None = None,
    max_disk: int | None = None,
    console: Console | None = None,
    notify: Sequence[str] = (),
) -> StudyResult:
    """Go on with a study: unfinished trials first, from their last checkpoint, then new ones up to the budget.

    more_trials: added to the study's number of trials. max_disk: bytes, replaces the study's limit. Raises StudyError
    for a missing study or one that runs.
    """
    started = time.monotonic()
    from sctune.search.launch import Launch
    from sctune.search.operate_launch import run_launch
    from sctune.search.plan import study_splits
    from sctune.search.study import Study
    from sctune.tracking.server import check_tracking

    root = (study_root or studies_folder()).expanduser().absolute()
    with Study.open(root, name).lock():
        # read again: the driver that held the lock a moment ago may have written the manifest
        study = Study.open(root, name)
        _check_versions(study)
        splits = study_splits(study.manifest)
        check_tracking(study.manifest.tracking_uri)
        seconds_left = _budget_left(study, time_budget_s)
        with session(address):
            asked = study.manifest.resources
            at_a_time = max_concurrent or asked.asked_concurrent
            resources = plan_resources(asked.cpus, asked.gpus, at_a_time, growing=address is not None)
            if address is not None or resources.nodes > 1:
                check_nodes(study.manifest.storage_path, study.manifest.versions)
            if max_disk is not None:
                study.with_max_disk(max_disk)
            if more_trials:
                study.with_trials(study.manifest.trials + more_trials)
            space = study.manifest.build_space()
            launch = Launch(study, space, splits, resources, seconds_left, console, started)
            return run_launch(launch, notify)


def _check_versions(study: Study) -> None:
    from sctune.trial.trainable import package_versions

    here, then = package_versions(), study.manifest.versions
    changed = [f"{name} {then[name]} then, {here.get(name)} now" for name in then if here.get(name) != then[name]]
    if changed:
        raise StudyError(
            f"study {study.name} was begun with other versions ({', '.join(changed)}), so its trials could not be "
            "compared; install those versions, or start a new study"
        )


@contextmanager
def session(address: str | None) -> Iterator[None]:
    """A connection to Ray; a local cluster that it started ends with it."""
    started = connect(address)
    try:
        yield
    finally:
        if started:
            import ray

            ray.shutdown()


def _budget_left(study: Study, budget_s: float | None) -> float | None:
    if budget_s is None:
        return None
    spent = sum(launch.seconds or 0.0 for launch in study.manifest.launches)
    if spent >= budget_s:
        raise StudyError(
            f"the time budget of {budget_s:g} s is spent ({spent:.0f} s over {len(study.manifest.launches)} launches); "
            "give a larger --time-budget"
        )
    return budget_s - spent
