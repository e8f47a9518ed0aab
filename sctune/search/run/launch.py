"""One launch over a study: observers, a fresh Tuner, clean stops, and an honest end whatever happens."""

from __future__ import annotations

import io
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ray import tune
from rich.console import Console

from sctune.data.split import Split
from sctune.errors import AllTrialsFailedError, ClusterError, StudyError, UnrecordedStopError
from sctune.paths import cache_folder
from sctune.search.cluster.board import Board
from sctune.search.cluster.connection import Resources, largest_resources, nodes_alive, nodes_for, usable_nodes
from sctune.search.cluster.resources import TrialResources
from sctune.search.cluster.shares import Claim
from sctune.search.plan.order import idle_lines
from sctune.search.plan.plan import weights_digests
from sctune.search.plan.references import reference_limit
from sctune.search.reconcile.recorded import past_reference, past_trial, shown_fields, study_facts
from sctune.search.reconcile.repair import open_writer
from sctune.search.reconcile.stored_trials import remove_strays
from sctune.search.run.back_pressure import DiskUse, StartGate
from sctune.search.run.controller import EndReason, TrialController
from sctune.search.run.faults import Faults
from sctune.search.run.finish import ended, finish
from sctune.search.run.packing import Packing
from sctune.search.run.progress import SearchProgress
from sctune.search.run.publisher import publishing
from sctune.search.run.ray_scheduler import NoProgress, RuleScheduler, Workers
from sctune.search.run.recorder import Observer
from sctune.search.run.references import ReferenceRuns
from sctune.search.run.retention import CheckpointKeeper
from sctune.search.run.searcher import StudySearcher
from sctune.search.run.sharing import packing_of
from sctune.search.run.signals import LeaveNow, Stop, stop_signals
from sctune.search.run.slots import FREE, ClusterSlots, Slots
from sctune.search.space.definition import Space
from sctune.search.study.content import task_digests
from sctune.search.study.driver import stop_requests
from sctune.search.study.full_runs import FullRuns
from sctune.search.study.leaderboard import leaderboard
from sctune.search.study.paired import value_se
from sctune.search.study.record import AfterRecord
from sctune.search.study.references import Reference
from sctune.search.study.result import StudyResult
from sctune.search.study.scheduling import rule_of
from sctune.search.study.splits import selection_labels
from sctune.search.study.study import Study
from sctune.search.study.trial_log import TrialLog
from sctune.tracking.callback import TrackingCallback
from sctune.tracking.writer import Writer
from sctune.train.card import CONTEXT_BYTES
from sctune.trial import trainable as trials_in_ray
from sctune.trial.building import TrialSpec
from sctune.trial.published.taking import Published
from sctune.trial.ray_private import remembered_trainables

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningLaunch:
    """What a launch needs; the caller holds the study's lock.

    seconds_left: what is left of the time budget. started: time.monotonic() of the command. on_cluster: whether trials
    may run on other machines.
    """

    study: Study
    space: Space
    splits: dict[str, Split]
    resources: Resources
    seconds_left: float | None
    console: Console | None
    started: float
    on_cluster: bool = False

    def run(self) -> StudyResult:
        """Search until the budget is spent, the space exhausted or a stop asked for.

        Raises AllTrialsFailedError, and ClusterError for trouble of a node that every trial would meet.
        """
        study = self.study
        writer = open_writer(study)
        tracking = TrackingCallback(AfterRecord(study.record, writer), study_facts(study), shown_fields(self.space))
        try:
            controller, result = self._search(tracking, writer)
            hopeless = controller.end is not None and controller.end.reason is EndReason.HOPELESS
            reason = "failed" if hopeless else "stopped" if result.stopped else ended(result)
            study.end_launch(_now(), reason, result.little_gain)
        except BaseException as problem:
            # the trials stay as the record has them; nothing may look as if it still ran
            if study.launched and not study.taken:
                tracking.on_study_end("FAILED", {"error": f"{type(problem).__name__}: {problem}"[:500]})
            # events wait for the record
            study.record.settle(3)
            writer.drain(3)
            if study.launched:
                study.end_launch(_now(), "stopped" if isinstance(problem, UnrecordedStopError) else "failed")
            raise
        finally:
            # the record hands the last events on
            try:
                study.record.close()
            finally:
                writer.close()
        _check(study, controller, result)
        return result

    def _search(self, tracking: TrackingCallback, writer: Writer) -> tuple[TrialController, StudyResult]:
        study, manifest, objective = self.study, self.study.manifest, self.study.objective
        trials = study.record.load()
        if study.record.foreign_note is not None:
            (self.console or Console(stderr=True)).print(
                study.record.foreign_note, markup=False, highlight=False, soft_wrap=True
            )
        labels = selection_labels(manifest, self.splits)
        progress = SearchProgress(
            manifest.trials,
            manifest.full_epochs,
            self.resources.concurrent,
            trials,
            lambda scores: value_se(scores, labels, objective),
            self.console or Console(stderr=True),
            objective,
        )
        remove_strays(manifest.storage_path, [past_trial(trial, objective) for trial in trials], manifest.keep_best)
        keeper = CheckpointKeeper(
            manifest.storage_path, manifest.keep_best, trials, study.record.then, lambda: study.taken, objective
        )
        use = DiskUse(study.folder, manifest.storage_path)
        gate = StartGate(
            use, keeper, manifest.max_disk, self.resources.concurrent, lambda: study.record.trouble, progress.say
        )
        trial_log = TrialLog(study.folder, len(manifest.launches) + 1, objective)
        observers: list[Observer] = [tracking, keeper, progress, trial_log]

        def left_out(line: str) -> None:
            _log.warning("%s", line)
            progress.say(line)
            study.record.then(lambda: study.leave_out(line), always=True)

        rule = rule_of(manifest, self.space.epochs)
        runs = FullRuns(labels, objective, manifest.look_behind) if manifest.tells_noise else None
        faults = self._faults()
        packing = self._packing(faults)
        slots = self._slots(faults, progress, gate, packing)
        controller = TrialController(
            manifest, self.space, study.record, observers, faults, gate, left_out, rule, runs, packing, slots
        )
        study.add_launch(_now(), tuple(self.resources.left_out.values()))
        tracking.on_study_start()
        if len(study.manifest.launches) > 1:
            # what an earlier launch could not deliver is in the record
            writer.doubt()
        with stop_signals(controller, _stop_key(study), self.seconds_left) as stop, stop_requests(study):
            handing = publishing(study, self.space, self.splits, self.on_cluster, progress.say)
            with progress, trial_log, gate, slots, handing as published, _only_our_own_output():
                self._run_references(controller, tracking, progress, published)
                tune_trials(study, self.space, self.splits, self.resources, controller, published)
            if controller.end is not None and controller.end.bug is not None:
                keeper.close()
                raise controller.end.bug
            self._flush(controller)
            # what it removes waits for the record
            keeper.close()
            if study.taken:
                raise StudyError(study.lost or f"study {study.name!r} is being run by another driver")
            return controller, self._finish(controller, tracking, writer, stop)

    def _run_references(
        self,
        controller: TrialController,
        tracking: TrackingCallback,
        progress: SearchProgress,
        published: Published | None,
    ) -> None:
        study = self.study
        if not study.manifest.references:
            return

        def ended(one: Reference) -> None:
            progress.on_reference(one)
            tracking.replay(past_reference(one, study.objective))

        spec = trial_spec(study, self.space, self.splits, [], published)
        rows = leaderboard(study.record.load(), study.objective)
        ran = [row.seconds for row in rows if row.state == "COMPLETE" and row.seconds is not None]
        limit = reference_limit(study.manifest, self.splits, self.resources.concurrent, self.seconds_left, ran)
        ReferenceRuns(study, spec, self.resources, ended, lambda: controller.stopping, limit, controller.slots).run()

    def _packing(self, faults: Faults) -> Packing | None:
        """How trials share GPUs; None where each has the same share."""
        study = self.study
        if not self.resources.packed:
            return None
        return packing_of(
            study.manifest.resources,
            self.resources,
            lambda need: study.record.then(lambda: study.learn_need(need), always=True),
            lambda: nodes_for(self.resources.cpus, 1.0) - faults.left_out,
        )

    def _faults(self) -> Faults:
        lacking = self.resources.left_out
        return Faults(
            TrialResources(self.resources.cpus, self.resources.gpus),
            largest_resources(lacking),
            lambda node: node in nodes_alive(),
            lambda taken: nodes_for(taken.cpus, taken.gpus),
            lacking,
        )

    def _slots(self, faults: Faults, progress: SearchProgress, gate: StartGate, packing: Packing | None) -> Slots:
        """As many trials at a time as a cluster holds and others leave; on a machine of its own as many as planned."""
        if not self.on_cluster:
            return FREE
        manifest, took = self.study.manifest, self.resources

        def changed(number: int) -> None:
            progress.concurrent = gate.concurrent = max(number, 1)
            for line in idle_lines(manifest.look_behind, number):
                progress.say(line)

        claim = Claim(
            key=f"{manifest.study_id}:{len(manifest.launches) + 1}",
            study=manifest.name,
            owner=manifest.owner or "unknown",
            weight=manifest.resources.share,
            cpus=took.cpus,
            # the smallest share: what needs more waits in Ray's queue
            gpus=took.gpus if packing is None else packing.least,
            since=_now(),
        )
        return ClusterSlots(
            Board(),
            claim,
            lambda: usable_nodes(faults.left_out),
            took.asked,
            took.concurrent,
            progress.say,
            changed,
        )

    def _flush(self, controller: TrialController) -> None:
        record = self.study.record
        try:
            record.flush()
        except StudyError as problem:
            if not controller.stopping or record.trouble is None:
                raise
            raise UnrecordedStopError(
                f"stopped, but {problem}; what it lacks is in the checkpoints: go on with "
                f"`sctune resume {self.study.name}` when the database is back"
            ) from None

    def _finish(
        self, controller: TrialController, tracking: TrackingCallback, writer: Writer, stop: Stop
    ) -> StudyResult:
        def end(hasty: bool) -> StudyResult:
            seconds = time.monotonic() - self.started
            return finish(self.study, self.splits, controller, tracking, writer, seconds, hasty)

        try:
            stop.finishing = True
            return end(hasty=False)
        except LeaveNow:
            return end(hasty=True)


def tune_trials(
    study: Study,
    space: Space,
    splits: dict[str, Split],
    resources: Resources,
    controller: TrialController,
    published: Published | None = None,
) -> None:
    """Run a fresh Tuner until the controller has no more trials, or a signal ends it."""
    manifest, rule, slots = study.manifest, controller.rule, controller.slots
    searcher = StudySearcher(controller)
    trainable = tune.with_parameters(
        trials_in_ray.SaliencyCutTrainable,
        spec=trial_spec(study, space, splits, list(rule.rungs) if rule else [], published).model_dump(),
    )
    scratch = study.folder / "ray"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    tuner = tune.Tuner(
        tune.with_resources(trainable, _request),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=RuleScheduler(controller.decide, searcher.on_error, lambda: slots.held),
            num_samples=-1,
            max_concurrent_trials=slots.most or resources.concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=f"launch-{len(manifest.launches)}",
            storage_path=str(scratch),
            # checkpoints are the trainable's own; Ray keeps none
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            # the controller decides which trial starts again, and when
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[NoProgress(), Workers(controller.began)],
            verbose=0,
        ),
    )
    try:
        with remembered_trainables():
            tuner.fit()
    finally:
        # Ray's snapshot is never read back; the record is the truth
        shutil.rmtree(scratch, ignore_errors=True)


def trial_spec(
    study: Study,
    space: Space,
    splits: dict[str, Split],
    rungs: list[int],
    published: Published | None = None,
) -> TrialSpec:
    """What workers are told of a launch; rungs: epochs that always leave a checkpoint. published: see `publishing`."""
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
        contents=task_digests(splits),
        weights_sha256=weights_digests(space),
        versions=manifest.versions,
        objective=manifest.objective,
        stop_key=_stop_key(study),
        published=published,
        replicates=manifest.replicates,
        epochs=space.epochs,
        gpu_context=max([CONTEXT_BYTES, *(need.context_bytes for need in manifest.resources.needs)]),
    )


def _stop_key(study: Study) -> str:
    return f"sctune-stop:{study.manifest.study_id}:{len(study.manifest.launches)}"


def _request(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    taken, avoid = config["resources"], config["avoid"]
    # part of the request, so that Tune reuses no idle worker of such a node
    where = {"bundle_label_selector": [{"ray.io/node-id": f"!in({','.join(avoid)})"}]} if avoid else {}
    return tune.PlacementGroupFactory([{"CPU": taken["cpus"], "GPU": taken["gpus"]}], **where)


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.config.get('number', 0):05d}-{trial.trial_id}"


@contextmanager
def _only_our_own_output() -> Iterator[None]:
    """Ray's remarks about lost workers go to the log; on stdout they would stand in the middle of a JSON document."""

    class ToLog(io.TextIOBase):
        def write(self, text: str) -> int:
            for line in filter(str.strip, text.splitlines()):
                _log.info("%s", line)
            return len(text)

    with redirect_stdout(ToLog()):
        yield


def _check(study: Study, controller: TrialController, result: StudyResult) -> None:
    end = controller.end
    if end is not None and end.reason is EndReason.ABORTED:
        raise ClusterError(f"{end.text}; then `sctune resume {study.name}`")
    if end is not None and end.reason is EndReason.HOPELESS:
        count = sum(row.state == "FAIL" for row in result.rows)
        raise AllTrialsFailedError(
            f"the first {count} trials of {study.name} failed, so it was ended; "
            f"{end.text}; see `sctune logs {study.name} 0`, then `sctune resume {study.name}`"
        )
    if result.rows and all(row.state == "FAIL" for row in result.rows):
        causes = {row.failure["message"] for row in result.rows if row.failure}
        raise AllTrialsFailedError(
            f"all {len(result.rows)} trials of {study.name} failed: {'; '.join(sorted(causes))[:300]}; "
            f"see `sctune status {study.name}`"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
