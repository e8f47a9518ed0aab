"""The end of a launch: the result, pictures and tables for the study's run, and the best model as `candidate`."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from sctune.data.split import Split
from sctune.errors import TrackingError
from sctune.files import is_disk_full
from sctune.search.reconcile.delivery import register_best
from sctune.search.reconcile.differences import UNFINISHED
from sctune.search.reconcile.repair import repair
from sctune.search.reconcile.study_files import BEST_MODEL, COPIES, Making
from sctune.search.reconcile.summary import summary
from sctune.search.run.controller import EndReason, TrialController
from sctune.search.study.references import read_references
from sctune.search.study.result import StudyResult, study_result
from sctune.search.study.splits import selection_labels
from sctune.search.study.study import Study
from sctune.tracking.callback import TrackingCallback
from sctune.tracking.server import safe_uri
from sctune.tracking.writer import Writer

DRAIN_S = 30.0
STOPPED_DRAIN_S = 3.0
"""A stopped driver leaves within 10 s; the next launch brings what is left."""
AWAY_DRAIN_S = 10.0
AGREE_S = 60.0
REGISTER_S = 120.0

_log = logging.getLogger(__name__)


def finish(
    study: Study,
    splits: dict[str, Split],
    controller: TrialController,
    tracking: TrackingCallback,
    writer: Writer,
    seconds: float,
    hasty: bool = False,
) -> StudyResult:
    """Sum up a launch and show it in MLflow; trouble with pictures or the tracking is a note, never an error.

    hasty: the driver must leave: pictures and model are left to a resume.
    """
    manifest = study.manifest
    trials = study.record.load()
    labels = selection_labels(manifest, splits)
    left_over = any(not trial.state.is_finished() for trial in trials)
    through = controller.exhausted is not None or controller.little_gain is not None
    unspent = len(trials) < manifest.trials and not through
    reason = EndReason.DONE if controller.end is None else controller.end.reason
    hopeless = reason is EndReason.HOPELESS
    stopped = hasty or (controller.stopping and not hopeless and (left_over or unspent))
    facts: dict[str, Any] = {"tracking_uri": safe_uri(manifest.tracking_uri), "stopped": stopped}
    references = read_references(manifest, study.record.load_references())
    result = study_result(
        study, trials, labels, seconds, exhausted=controller.exhausted, references=references, **facts
    )
    result = replace(result, little_gain=None if controller.stopping else controller.little_gain)
    made = Making()
    made.notes += [study.record.foreign_note] if study.record.foreign_note else []
    if not stopped:
        made.files(study, splits, result, trials, labels, tracking)
    notes = made.notes
    told = summary(study, trials, result.noise, result.references, result.against)
    failed = hopeless or (bool(result.rows) and all(row.state == "FAIL" for row in result.rows))
    tracking.on_study_end("FAILED" if failed else "KILLED" if stopped else "FINISHED", **told)
    study.record.flush()  # events wait for it
    # a server that was away before is not waited for long
    patience = STOPPED_DRAIN_S if stopped else DRAIN_S if writer.last_error is None else AWAY_DRAIN_S
    if writer.drain(patience) == 0 and not stopped:
        how = "failed" if hopeless else "done"
        made.tried("the comparison with MLflow", lambda: _agree(study, how, writer))
        if result.best is not None and writer.last_error is None and BEST_MODEL not in made.unwritten:
            made.tried(BEST_MODEL, lambda: _best_model(study, tracking, writer))
        writer.drain(STOPPED_DRAIN_S)
    if writer.undelivered or writer.in_doubt:
        why = "" if writer.last_error is None else f" ({writer.last_error})"
        what = f"{writer.undelivered} events have" if writer.undelivered else "some of the study may have"
        notes.append(f"{what} not reached MLflow{why}; `sctune sync {study.name}` sends them, and so does a resume")
    if any(map(is_disk_full, notes)):
        made.unwritten.append(COPIES)
    return replace(
        result,
        out_of_time=reason is EndReason.OUT_OF_TIME,
        parent_run_id=writer.parent_run_id,
        unwritten=tuple(dict.fromkeys(made.unwritten)),
        notes=(*result.notes, *notes),
    )


def ended(result: StudyResult) -> str:
    """The reason of a launch that ran to its end: `unfinished` where files are missing, which a `sync` makes."""
    return UNFINISHED if set(result.unwritten) - {COPIES} else "done"


def _agree(study: Study, reason: str, writer: Writer) -> list[str]:
    """Where there was doubt whether MLflow has everything, as after a resume: compare with the record and mend."""
    if not writer.doubted:
        return []
    try:
        mended = writer.repair(lambda apply: repair(study, apply, reason=reason), AGREE_S).mended
    except TrackingError as problem:
        return [f"the runs in MLflow were not compared with the record: {problem}; `sctune sync {study.name}` does it"]
    return [f"MLflow differed from the record in {mended} place(s), which were mended"] if mended else []


def _best_model(study: Study, tracking: TrackingCallback, writer: Writer) -> list[str]:
    """Register the best model; gives notes for the user."""
    tasks = study.manifest.tasks
    if writer.parent_run_id is None:
        return [f"the best model was not registered: MLflow has not taken the study's run; `sctune sync {study.name}`"]
    try:
        model = register_best(study, writer.parent_run_id, REGISTER_S)
    except TrackingError as problem:
        return [str(problem)]
    if model is None:
        return []
    tracking.on_tags(None, {"model_uri": model.uri})
    notes = [f"best model: {model.uri} (version {model.version})"]
    if len(tasks) > 1:
        notes.append(f"it is the one trained on task {tasks[0].key}, of {len(tasks)} tasks")
    return notes
