"""Bringing MLflow and the checkpoints to what the study's record says: `sctune sync STUDY`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sctune.errors import SctuneError, StorageError, TrackingError
from sctune.search.reconcile.check import study_state
from sctune.search.reconcile.delivery import register_best
from sctune.search.reconcile.differences import UNFINISHED, Agreement, Difference
from sctune.search.reconcile.recorded import past_trial, tracking_of
from sctune.search.reconcile.registered import restore_champion
from sctune.search.reconcile.repair import ROUNDS, remove_journal, repair
from sctune.search.reconcile.stored_trials import remove_strays
from sctune.search.reconcile.study_files import finish_files
from sctune.search.study.study import Study
from sctune.tracking.server import find_parent_run, run_bounded, scrub
from sctune.tracking.writer import Writer

PATIENCE_S = 30.0
"""Nothing arrives for so long while MLflow gives errors: no use in waiting on."""


@dataclass(frozen=True)
class SyncResult:
    """done: what was mended; left: what was not, and why; agreement: the last check, None where MLflow was away."""

    done: tuple[str, ...]
    left: tuple[str, ...]
    agreement: Agreement | None

    @property
    def complete(self) -> bool:
        return not self.left and self.agreement is not None and self.agreement.agrees


def sync(name: str, study_root: Path, timeout_s: float, storage: str | None = None) -> SyncResult:
    """Compare, and mend what differs; for a study that no driver runs (StudyError otherwise).

    storage: URL of the record of a study that another machine began.
    """
    study = Study.open(study_root, name, storage)
    with study.lock():
        remove_journal(study.folder)
        writer = Writer(study.manifest.tracking_uri)
        try:
            return _Sync(study, writer, time.monotonic() + timeout_s).run()
        finally:
            writer.close()
            study.record.close()


class _Sync:
    def __init__(self, study: Study, writer: Writer, deadline: float) -> None:
        self.study = study
        self.writer = writer
        self.deadline = deadline
        self.done: list[str] = []
        self.tracking = tracking_of(study, writer)

    def run(self) -> SyncResult:
        trials = self.study.record.load()
        past = [past_trial(trial, self.study.objective) for trial in trials]
        try:
            removed = remove_strays(self.study.manifest.storage_path, past, self.study.manifest.keep_best)
        except StorageError as problem:
            # MLflow gets what it lacks all the same; the comparison names the checkpoints
            removed = 0
            self.done.append(str(problem))
        if removed:
            self.done.append(f"removed checkpoints of {removed} trial(s) that should have none")
        if study_state(self.study, trials).reason == UNFINISHED:
            hindrance = self._write_files()
            if hindrance is not None:
                return SyncResult(tuple(self.done), (hindrance,), None)
        try:
            agreement = self._repair()
        except TrackingError as problem:
            return SyncResult(tuple(self.done), (f"MLflow was not brought to the record: {problem}",), None)
        return SyncResult(tuple(self.done), (), agreement)

    def _write_files(self) -> str | None:
        """Make what the last launch had no room for; gives why it cannot be made."""
        try:
            self.done += finish_files(self.study, self.tracking)
        except SctuneError as problem:
            return str(problem)
        self.done.append("made the figures and the model that the disk had no room for")
        return None

    def _repair(self) -> Agreement:
        """Mend runs, then registry, then see again; TrackingError where MLflow does not take it."""
        for _ in range(ROUNDS):
            found = self.writer.repair(lambda apply: repair(self.study, apply), self._seconds(), PATIENCE_S)
            if found.mended:
                self.done.append(f"mended {found.mended} difference(s)")
            agreement = found.compared.agreement()
            if not self._register(agreement.differences):
                break
        return agreement

    def _register(self, differences: Sequence[Difference]) -> bool:
        """Mend what the registry lacks; whether there was something to mend."""
        kinds = {one.kind for one in differences if one.repair == "sync"}
        if "alias" in kinds:
            self._restore_alias()
        if "model" in kinds:
            self._register_best()
        return bool(kinds & {"alias", "model"})

    def _register_best(self) -> None:
        manifest = self.study.manifest
        try:
            parent = run_bounded(lambda: find_parent_run(manifest.tracking_uri, manifest.study_id), self._seconds())
            model = None if parent is None else register_best(self.study, parent, self._seconds())
        except SctuneError as problem:
            self.done.append(str(problem))
            return
        except Exception as problem:  # whatever MLflow raises
            self.done.append(f"the registry refused: {scrub(problem, manifest.tracking_uri)}")
            return
        if model is not None:
            self.tracking.on_tags(None, {"model_uri": model.uri})
            self.done.append(f"best model: {model.uri} (version {model.version})")

    def _restore_alias(self) -> None:
        try:
            self.done += run_bounded(lambda: restore_champion(self.study), self._seconds())
        except Exception as problem:  # whatever MLflow raises
            self.done.append(f"the registry refused: {scrub(problem, self.study.manifest.tracking_uri)}")

    def _seconds(self) -> float:
        return max(1.0, self.deadline - time.monotonic())
