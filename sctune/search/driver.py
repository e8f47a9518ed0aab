"""One launch of a study: connect to Ray, run a fresh Tuner over the record, and say what came of it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sctune.data.split import Split
from sctune.errors import AllTrialsFailedError, ClusterError, DataError, StudyError
from sctune.paths import cache_folder, studies_folder
from sctune.search.cluster import Resources, check_nodes, connect, plan_resources
from sctune.search.options import SearchOptions

if TYPE_CHECKING:
    from sctune.search.plan import Plan
    from sctune.search.result import StudyResult
    from sctune.search.searcher import StudySearcher
    from sctune.search.space import Space
    from sctune.search.study import Study

MAX_WORKER_LOSSES = 3

PlanHook = Callable[["Plan", Resources], None]


def run_search(options: SearchOptions, console: Console | None = None, on_plan: PlanHook | None = None) -> StudyResult:
    """Search from options to a finished or stopped study; what `sctune search` does.

    on_plan is shown the plan before the first trial. Raises SctuneError with one line for bad input (nothing is
    left behind), AllTrialsFailedError when no trial succeeded.
    """
    started = time.monotonic()
    from sctune.search.study import Study

    with planned(options) as (plan, resources):
        if on_plan is not None:
            on_plan(plan, resources)
        study = Study.create(plan.study_root, plan.manifest)
        with study.lock():
            return _launch(study, plan.space, plan.splits, resources, options.time_budget_s, console, started)


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
    console: Console | None = None,
) -> StudyResult:
    """Go on with a study: unfinished trials first, from their last checkpoint, then new ones up to the budget.

    more_trials: added to the study's number of trials. Raises StudyError for a missing study or one that runs.
    """
    started = time.monotonic()
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
            if more_trials:
                study.with_trials(study.manifest.trials + more_trials)
            return _launch(study, study.manifest.build_space(), splits, resources, seconds_left, console, started)


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


def _launch(
    study: Study,
    space: Space,
    splits: dict[str, Split],
    resources: Resources,
    seconds_left: float | None,
    console: Console | None,
    started: float,
) -> StudyResult:
    """One launch; the caller holds the study's lock. seconds_left: what is left of the time budget."""
    from sctune.search.finish import finish
    from sctune.search.plan import selection_labels
    from sctune.search.progress import SearchProgress
    from sctune.search.replay import replay_killed
    from sctune.search.result import value_se
    from sctune.search.retention import CheckpointKeeper
    from sctune.search.searcher import StudySearcher
    from sctune.tracking.callback import TrackingCallback
    from sctune.tracking.writer import Writer

    manifest = study.manifest
    record = study.record
    writer = Writer(manifest.tracking_uri, study.folder / "tracking.jsonl")
    tracking = TrackingCallback(writer, _facts(study, splits))
    try:
        trials = record.load()
        labels = selection_labels(manifest, splits)
        progress = SearchProgress(
            manifest.trials,
            space.base.budget.epochs,
            resources.concurrent,
            trials,
            lambda scores: value_se(scores, labels, 200),
            console or Console(stderr=True),
        )
        keeper = CheckpointKeeper(manifest.storage_path, manifest.keep_best, trials)
        searcher = StudySearcher(manifest, space, record, [tracking, keeper, progress])
        study.add_launch(_now())
        tracking.on_study_start()
        replay_killed(manifest, trials, tracking)
        with progress, _stop_signals(searcher, seconds_left):
            _tune(study, space, splits, resources, searcher)
        keeper.close()
        record.flush()
        result = finish(study, splits, searcher, tracking, writer, time.monotonic() - started)
        study.end_launch(_now(), "stopped" if result.stopped else "done")
    except BaseException as problem:
        # the trials stay as the record has them; nothing may look as if it still ran
        tracking.on_study_end("FAILED", {"error": f"{type(problem).__name__}: {problem}"[:500]})
        writer.drain(3)
        if study.manifest.launches and study.manifest.launches[-1].ended is None:
            study.end_launch(_now(), "failed")
        raise
    finally:
        writer.close()
        record.close()
    if searcher.abort is not None:
        raise ClusterError(f"{searcher.abort}; then `sctune resume {study.name}`")
    if result.rows and all(row.state == "FAIL" for row in result.rows):
        causes = {row.failure["message"] for row in result.rows if row.failure}
        raise AllTrialsFailedError(
            f"all {len(result.rows)} trials of {study.name} failed: {'; '.join(sorted(causes))[:300]}; "
            f"see `sctune status {study.name}`"
        )
    return result


def _tune(study: Study, space: Space, splits: dict[str, Split], resources: Resources, searcher: StudySearcher) -> None:
    from ray import tune

    from sctune.search.scheduler import RuleScheduler, make_rule
    from sctune.trial.trainable import SaliencyCutTrainable

    manifest = study.manifest
    spec = manifest.scheduler
    rule = make_rule(spec.name, space.base.budget.epochs, spec.grace, spec.factor, manifest.sampler_seed)
    if rule is not None:
        rule.refill(searcher.curves)
    trainable = tune.with_parameters(
        SaliencyCutTrainable, spec=_trial_spec(study, space, splits, list(rule.rungs) if rule else [])
    )
    scratch = study.folder / "ray"
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": resources.cpus, "gpu": resources.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=RuleScheduler(rule),
            num_samples=-1,
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=f"launch-{len(manifest.launches)}",
            storage_path=str(scratch),
            # checkpoints are the trainable's own; Ray keeps none
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=MAX_WORKER_LOSSES),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        # Ray's snapshot is never read back; the record is the truth
        shutil.rmtree(scratch, ignore_errors=True)


def _trial_spec(study: Study, space: Space, splits: dict[str, Split], rungs: list[int]) -> dict[str, Any]:
    from sctune.search.plan import weights_digests
    from sctune.trial.trainable import TrialSpec

    manifest, config = study.manifest, space.base
    if manifest.resources.gpus == 0 and config.runtime.device == "auto":
        # a trial without a GPU share must not take one that it can see
        config = config.override({"runtime.device": "cpu"})
    return TrialSpec(
        config=config.model_dump(),
        tasks=list(manifest.tasks),
        storage=manifest.storage_path,
        cache=str(cache_folder()),
        checkpoint_epochs=rungs,
        checkpoint_interval=manifest.checkpoint_interval,
        splits={key: split.digest for key, split in splits.items()},
        weights_sha256=weights_digests(space),
        versions=manifest.versions,
    ).model_dump()


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config.get('number', 0):05d}-{trial.trial_id}"


@contextmanager
def _stop_signals(searcher: StudySearcher, budget_s: float | None) -> Iterator[None]:
    """SIGINT, SIGTERM and the end of the time budget stop the launch cleanly; a second signal ends it at once.

    Tune ends its loop on SIGUSR1 (RAY_ENVIRONMENT keeps its hands off SIGINT), so the searcher can be told first.
    Must be entered after ray.init, which replaces handlers.
    """

    def stop(_number: int, _frame: Any) -> None:
        if searcher.stopping:
            raise KeyboardInterrupt
        out_of_time()

    def out_of_time() -> None:
        searcher.stopping = True
        os.kill(os.getpid(), signal.SIGUSR1)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    # until Tune has its own handler: the searcher then ends the launch by suggesting nothing
    # and for good, since a late timer must not end the process
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    timer = threading.Timer(budget_s, out_of_time) if budget_s is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        for number, handler in before.items():
            signal.signal(number, handler)


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


def _facts(study: Study, splits: dict[str, Split]) -> Any:
    from sctune.tracking.callback import StudyFacts

    manifest = study.manifest
    if not splits:
        raise DataError(f"study {study.name} has no tasks")
    return StudyFacts(
        study_id=manifest.study_id,
        name=manifest.name,
        base=manifest.trial_config().flat(),
        data_digest=manifest.data.digest,
        git_commit=manifest.git_commit,
        versions=manifest.versions,
        seed=manifest.tasks[0].seed,
        tasks=[task.key for task in manifest.tasks],
        tags={
            "profile": manifest.profile,
            "space": str(manifest.space.get("name")),
            "sampler": manifest.sampler,
            "scheduler": manifest.scheduler.name,
            "selection": manifest.selection.mode,
            "selection_reason": manifest.selection.reason,
            "data": manifest.data.name,
        },
        resumed=bool(manifest.launches),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
