"""Bringing MLflow and the checkpoints to what the study's record says: `sctune sync STUDY`, and the end of a resume."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial

from sctune.errors import SctuneError, StorageError, TrackingError
from sctune.search.reconcile.check import check, study_state
from sctune.search.reconcile.comparison import UNFINISHED, Agreement, Difference, StudyState, study_status
from sctune.search.reconcile.delivery import deliveries, register_best
from sctune.search.reconcile.registered import restore_champion
from sctune.search.reconcile.replay import past_trial, replay, tracking_of
from sctune.search.reconcile.stored_trials import remove_strays
from sctune.search.reconcile.study_files import finish_files
from sctune.search.reconcile.summary import best_noise, summary
from sctune.search.study.study import Study
from sctune.tracking.callback import TrackingCallback
from sctune.tracking.server import run_bounded, scrub
from sctune.tracking.writer import Writer

JOURNAL = "tracking.jsonl"
ROUNDS = 3
"""A repair may show a further difference: runs are nested anew once the study's run was made again."""

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
    """Send what is owed, compare, mend what differs; for a study that no driver runs (StudyError otherwise).

    storage: URL of the record of a study that another machine began.
    """
    study = Study.open(study_root, name, storage)
    with study.lock():
        writer = Writer(study.manifest.tracking_uri, study.folder / JOURNAL)
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
        self.trials = study.record.load()
        self.state = study_state(study, self.trials)
        self.tracking = tracking_of(study, writer)
        self.problem = "it did not answer in time"

    def run(self) -> SyncResult:
        manifest = self.study.manifest
        past = [past_trial(trial, self.study.objective) for trial in self.trials]
        try:
            removed = remove_strays(manifest.storage_path, past, manifest.keep_best)
        except StorageError as problem:
            # MLflow gets what it is owed all the same; the comparison names the checkpoints
            removed = 0
            self.done.append(str(problem))
        if removed:
            self.done.append(f"removed checkpoints of {removed} trial(s) that should have none")
        if self.state.reason == UNFINISHED:
            hindrance = self._write_files()
            if hindrance is not None:
                return SyncResult(tuple(self.done), (hindrance,), None)
        owed = self.writer.undelivered
        left = self._drain()
        if owed > left:
            self.done.append(f"sent {owed - left} events that were owed")
        if left:
            return self._stuck(left)
        agreement = None
        for _ in range(ROUNDS):
            agreement = self._check()
            if agreement is None or agreement.agrees:
                break
            if not mend(self.study, self.trials, self.state, agreement.differences, self.tracking, self.writer):
                break
            left = self._drain()
            if not left:
                self._register(agreement.differences)
                left = self._drain()
            if left:
                return self._stuck(left)
            self.done.append(f"mended {sum(one.repair is not None for one in agreement.differences)} difference(s)")
        if agreement is None:
            return SyncResult(
                tuple(self.done), (f"MLflow was not read: {self.writer.last_error or self.problem}",), None
            )
        if agreement.agrees:
            self.writer.replayed()
        return SyncResult(tuple(self.done), (), agreement)

    def _write_files(self) -> str | None:
        """Make what the last launch had no room for; gives why it cannot be made."""
        # it needs this module for the end of a resume
        try:
            self.done += finish_files(self.study, self.tracking)
        except SctuneError as problem:
            return str(problem)
        self.done.append("made the figures and the model that the disk had no room for")
        self.state = study_state(self.study, self.trials)
        return None

    def _check(self) -> Agreement | None:
        try:
            return run_bounded(lambda: check(self.study, self.trials, self.state), self._seconds())
        except TimeoutError:
            return None
        except TrackingError as problem:
            self.problem = str(problem)
            return None

    def _register(self, differences: Sequence[Difference]) -> None:
        if any(one.kind == "alias" for one in differences):
            self._restore_alias()
        parent = self.writer.parent_run_id
        if any(one.kind == "model" for one in differences) and parent is not None:
            try:
                model = register_best(self.study, parent, self._seconds())
            except SctuneError as problem:
                self.done.append(str(problem))
                return
            if model is not None:
                self.tracking.on_tags(None, {"model_uri": model.uri})
                self.done.append(f"best model: {model.uri} (version {model.version})")

    def _restore_alias(self) -> None:
        try:
            self.done += run_bounded(lambda: restore_champion(self.study), self._seconds())
        except Exception as problem:  # whatever MLflow raises
            self.done.append(f"the registry refused: {scrub(problem, self.study.manifest.tracking_uri)}")

    def _drain(self) -> int:
        """Wait for the writer, to the end of the time or until nothing arrives any more; gives the events left."""
        left, moved = self.writer.undelivered, time.monotonic()
        while left and time.monotonic() < self.deadline:
            now = self.writer.drain(min(1.0, self._seconds()))
            if now < left:
                left, moved = now, time.monotonic()
            if self.writer.last_error is not None and time.monotonic() - moved > PATIENCE_S:
                break
            left = now
        return left

    def _stuck(self, left: int) -> SyncResult:
        reason = self.writer.last_error or "time is up"
        return SyncResult(tuple(self.done), (f"{left} events have not reached MLflow ({reason})",), None)

    def _seconds(self) -> float:
        return max(1.0, self.deadline - time.monotonic())


def mend(
    study: Study,
    trials: Sequence[FrozenTrial],
    state: StudyState,
    differences: Sequence[Difference],
    tracking: TrackingCallback,
    writer: Writer,
) -> bool:
    """Put into the writer whatever makes the runs say what the record says; False where nothing can be done.

    MLflow lets no parameter or point be changed, so a run with a wrong one is deleted and made anew; its files move.
    """
    ours = [one for one in differences if one.repair == "sync" and one.kind not in ("checkpoint", "model", "alias")]
    by_trial: dict[int | None, list[Difference]] = {}
    for one in ours:
        by_trial.setdefault(one.trial, []).append(one)
    began = min((past_trial(trial).started for trial in trials), default=int(time.time() * 1000))
    tracking.on_study_found(began)
    for number, group in by_trial.items():
        wrong = {run: one.kind for one in group for run in one.wrong}
        for run in wrong:
            tracking.drop_run(number, run)
        if number is not None and any(one.kind != "files" for one in group):
            replay([trial for trial in trials if trial.number == number], tracking, writer)
        for run in (run for run, kind in wrong.items() if kind != "extra run"):
            tracking.adopt_files(number, run)
    if any(one.kind == "files" for one in ours):
        for delivery in deliveries(study):
            tracking.on_artifact(delivery.trial, delivery.folder, delivery.inside)
    if ours:
        # children that were opened again are closed with their study
        tracking.on_study_end(study_status(state)[0], **summary(study, trials, best_noise(study, trials)))
    return any(one.repair == "sync" and one.kind != "checkpoint" for one in differences)
