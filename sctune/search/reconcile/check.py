"""Reads a study's record, its runs in MLflow and its checkpoints, and compares them: `sctune status STUDY --check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from sctune.errors import ChangedDataError, SctuneError, TrackingError
from sctune.search.reconcile.comparison import Expected, compare_runs, expected_run
from sctune.search.reconcile.delivery import compare_files
from sctune.search.reconcile.differences import UNFINISHED, Agreement, Difference, StudyState, settled
from sctune.search.reconcile.record_check import compare_checkpoints, compare_record
from sctune.search.reconcile.recorded import past_trial, shown_references, tracking_of
from sctune.search.reconcile.registered import compare_registry
from sctune.search.reconcile.stored_trials import list_trials
from sctune.search.study.driver import running_driver
from sctune.search.study.record import Record
from sctune.search.study.splits import checked_splits
from sctune.search.study.study import Study
from sctune.tracking.callback import PastReference, PastTrial
from sctune.tracking.events import Event
from sctune.tracking.server import check_tracking, safe_uri, scrub
from sctune.tracking.stored import StoredRun, read_study


def check_stored(study_root: Path, name: str, storage: str | None = None) -> Agreement:
    """What differs in a study as it stands, run by a driver or not. Raises TrackingError where MLflow is away.

    storage: URL of the record of a study that another machine began.
    """
    study = Study.open(study_root, name, storage)
    driver = running_driver(study)
    try:
        check_tracking(study.manifest.tracking_uri)
        found = compare(study, study.record, running=driver is not None)
    finally:
        study.record.close()
    return _with_images(study, found.agreement(None if driver is None else driver.text))


@dataclass(frozen=True)
class Compared:
    """Trials as they are recorded, what MLflow must hold of them and of the references, and how it differs.

    stored: what the record holds of the references. note: of trials that another program put into the record.
    """

    trials: Sequence[FrozenTrial]
    expected: Sequence[Expected]
    state: StudyState
    differences: Sequence[Difference]
    note: str | None
    stored: Mapping[str, Any] = field(default_factory=dict)

    def agreement(self, driver: str | None = None) -> Agreement:
        """The outcome for people; driver: who runs the study, whose events may be on their way."""
        points = sum(one.n_points for one in self.expected)
        differences, waiting = settled(self.differences, self.state.running)
        notes = () if self.note is None else (self.note,)
        count = len(self.trials)
        return Agreement(count, points, differences, driver, waiting, notes, len(self.expected) - count)


def compare(study: Study, record: Record, *, running: bool = False, reason: str | None = None) -> Compared:
    """Compare the record as it is now with the runs, and with the checkpoints and files of a study that does not run.

    reason: how the launch ended, where the manifest does not say so yet. Raises TrackingError where MLflow cannot be
    read.
    """
    trials, stored = record.load(), record.load_references()
    expected = expected_runs(study, trials, stored)
    runs = read_runs(study, {metric for one in expected for metric in one.points})
    if running:
        # read again, since a trial is recorded before its run tells of it
        trials, stored = record.load(), record.load_references()
        expected = expected_runs(study, trials, stored)
    state = study_state(study, trials, running=running)
    state = state if reason is None else replace(state, reason=reason)
    past = [past_trial(trial, study.objective) for trial in trials]
    objectives = {trial.number: trial.intermediate_values for trial in trials}
    found = [*compare_record(past, objectives, state, record.foreign), *compare_runs(expected, runs, state)]
    if not running:
        found += _checkpoints(study, past)
        found += _files(study, past, runs, state)
    return Compared(trials, expected, state, found, record.foreign_note, stored)


def study_state(study: Study, trials: Sequence[FrozenTrial], *, running: bool = False) -> StudyState:
    """How the study ended, from its manifest and its record."""
    launches = study.manifest.launches
    failed = bool(trials) and all(trial.state.name == "FAIL" for trial in trials)
    reason = launches[-1].reason if launches else None
    return StudyState(len(launches), reason, running, failed, study.manifest.notes or "")


def expected_runs(study: Study, trials: Sequence[FrozenTrial], stored: Mapping[str, Any]) -> list[Expected]:
    """What MLflow must hold of each trial, and of each reference that has been run or has failed."""
    tracking = tracking_of(study, _Nowhere())
    past: list[PastTrial | PastReference] = [past_trial(trial, study.objective) for trial in trials]
    past += shown_references(study, stored)
    return [expected_run(one, tracking.params_of(one)) for one in past]


def read_runs(study: Study, metrics: set[str]) -> list[StoredRun]:
    """The study's runs; MLflow's errors as TrackingError."""
    uri = study.manifest.tracking_uri
    try:
        return read_study(uri, study.manifest.study_id, metrics)
    except Exception as problem:  # whatever MLflow raises
        raise TrackingError(
            f"the runs of {study.name} cannot be read from {safe_uri(uri)}: {scrub(problem, uri)}"
        ) from None


def _with_images(study: Study, found: Agreement) -> Agreement:
    """The agreement, and whether the images are those that the study began with; a note where they are not here."""
    try:
        checked_splits(study.manifest, study.folder)
    except ChangedDataError as problem:
        changed = Difference(None, "data", str(problem), repair=None)
        return replace(found, differences=(*found.differences, changed))
    except SctuneError as problem:
        return replace(found, notes=(*found.notes, f"the images were not compared: {problem}"))
    return found


def _checkpoints(study: Study, past: Sequence[PastTrial]) -> list[Difference]:
    manifest = study.manifest
    try:
        stored = list_trials(manifest.storage_path)
    except (OSError, SctuneError) as problem:
        return [Difference(None, "checkpoint", f"the checkpoints cannot be read: {problem}", repair=None)]
    return compare_checkpoints(past, stored, manifest.keep_best, limited=manifest.max_disk is not None)


def _files(study: Study, past: Sequence[PastTrial], runs: Sequence[StoredRun], state: StudyState) -> list[Difference]:
    if state.reason == UNFINISHED:
        text = "its figures or its model were not written, since the disk was full"
        return [Difference(None, "files", text)]
    if state.reason != "done":
        return []  # the next launch makes them anew
    uri = study.manifest.tracking_uri
    try:
        return [*compare_files(study, runs), *compare_registry(study, runs)]
    except Exception as problem:
        raise TrackingError(
            f"the files of {study.name} cannot be listed at {safe_uri(uri)}: {scrub(problem, uri)}"
        ) from None


class _Nowhere:
    """A sink for a callback that is only asked what it would show."""

    def put(self, event: Event) -> None:
        raise AssertionError(event)
