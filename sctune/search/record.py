"""The durable record of a study: an Optuna storage, written by one background thread in the order of events.

The searcher works on a study in memory and never waits for the record; events that come close together share a
transaction, so that the record is always a prefix of what happened, whatever ends the driver. Trial numbers in the
record equal those in memory. Attributes that hold pickles are not stored.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from optuna.exceptions import StorageInternalError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sctune.errors import StudyError
from sctune.report import OBJECTIVE
from sctune.search.database import (
    DATABASE_ERRORS,
    close_database,
    open_database,
    taken,
    unreachable,
    with_retries,
    without_password,
)
from sctune.search.record_rows import Batch, write

REPORT_PREFIX = "report:"
"""User attribute `report:<epoch>`: {"metrics": {...}, "time": first arrival in ms since 1970}."""

GATHER_S = 0.1
"""Least time between two transactions, while nobody waits for one."""

MAX_BATCH = 1000
MAX_BEHIND = 5000
"""Events that may wait to be written before `keep_up` waits for them."""

_Job = Callable[[Batch], None]


@dataclass(frozen=True)
class _Then:
    """Called when everything queued before it has been written; always: also when it never will be."""

    call: Callable[[], None]
    always: bool


class NoRecordError(StudyError):
    """The database answers, and holds no study of this name."""


class Record:
    """One study's rows. All writes are queued; errors of the thread are raised by the next `keep_up` or `flush`.

    trouble: why the database does not take the writes at present, one line; None while it does.
    """

    def __init__(self, url: str, name: str, *, create: bool = False) -> None:
        """Open the record of study `name` at an SQLAlchemy URL; `create` makes it and refuses an existing one.

        Raises StudyError when the database cannot be reached, or the study is there already or missing.
        """
        self.name = name
        try:
            self._storage = open_database(url)
            self._study_id = self._create() if create else self._storage.get_study_id_from_name(name)
        except KeyError:
            raise NoRecordError(f"the record at {without_password(url)} holds no study {name!r}") from None
        except DATABASE_ERRORS as problem:
            raise unreachable(url, problem) from None
        self.trouble: str | None = None
        self._trial_ids: dict[int, int] = {}
        self._over: set[int] = set()
        self._jobs: deque[_Job | _Then] = deque()
        self._pending = 0
        self._lock = threading.Lock()
        self._some, self._hurry, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def load(self) -> list[FrozenTrial]:
        """All trials in order of their numbers, after everything queued so far has been written."""
        self.flush()
        stored = with_retries(lambda: self._storage.get_all_trials(self._study_id))
        trials = sorted(stored, key=lambda trial: trial.number)
        self._trial_ids = {trial.number: trial._trial_id for trial in trials}
        self._over = {trial.number for trial in trials if trial.state.is_finished()}
        return trials

    def load_study_attrs(self) -> dict[str, Any]:
        """What samplers keep with the study (the place in a QMC sequence, NSGA-II's parents)."""
        self.flush()
        return dict(with_retries(lambda: self._storage.get_study_system_attrs(self._study_id)))

    def start(self, frozen: FrozenTrial) -> None:
        """A new running trial with its parameters and attributes."""
        self._put(lambda batch: batch.starts.append(frozen))

    def set_attrs(self, number: int, attrs: Mapping[str, Any]) -> None:
        """User attributes of an unfinished trial (JSON values)."""
        kept = dict(attrs)
        self._put(lambda batch: batch.set_attrs(number, kept))

    def set_study_attrs(self, attrs: Mapping[str, Any]) -> None:
        kept = dict(attrs)
        if kept:
            self._put(lambda batch: batch.study_attrs.update(kept))

    def report(self, number: int, report: Mapping[str, Any], timestamp_ms: int) -> None:
        """One epoch of a running trial (EpochReport.to_dict()); the same epoch again replaces it."""
        epoch, value = int(report["epoch"]), float(report[OBJECTIVE])
        attrs = {f"{REPORT_PREFIX}{epoch}": {"metrics": dict(report["metrics"]), "time": timestamp_ms}}
        if report.get("scores"):
            attrs["scores"] = dict(report["scores"])
        self._put(lambda batch: batch.report(number, epoch, value, attrs))

    def finish(self, number: int, state: TrialState, value: float | None, attrs: Mapping[str, Any]) -> None:
        """The end of a trial: COMPLETE, PRUNED or FAIL; told again it changes nothing."""
        kept = dict(attrs)
        self._put(lambda batch: batch.finish(number, state, value, kept))

    def then(self, call: Callable[[], None], *, always: bool = False) -> None:
        """Call (from any thread, quickly) once everything queued so far has been written; at once if it has been.

        After a failed write it is not called, or with `always` it is called all the same.
        """
        with self._lock:
            if self._pending:
                self._queue(_Then(call, always))
                return
        if always or self._error is None:
            call()

    def keep_up(self) -> None:
        """Raises StudyError when a write failed; waits only where the database is far behind."""
        if self._error is None and self._pending > MAX_BEHIND:
            self.flush()
        self._raise_error()

    def settle(self, timeout: float) -> bool:
        """Wait until nothing is queued any more, written or not; False after `timeout` seconds."""
        done = threading.Event()
        self.then(done.set, always=True)
        self._hurry.set()
        return done.wait(timeout)

    def flush(self, timeout: float = 120.0) -> None:
        """Wait until all queued writes are done; raises StudyError if one failed or `timeout` seconds passed."""
        settled = self.settle(timeout)
        self._raise_error()
        if not settled:
            raise StudyError(f"the record of {self.name} did not take its writes within {timeout:g} s")

    def close(self) -> None:
        """Write what is queued, end the thread and let go of the database."""
        try:
            self.flush()
        finally:
            self._closing.set()
            self._some.set()
            self._hurry.set()
            if self._thread is not None:
                self._thread.join()
                self._thread = None
            close_database(self._storage)

    def note(self, key: str) -> dict[str, Any] | None:
        """What `set_note` of any process left with the study, read at once from the database."""
        return self._storage.get_study_user_attrs(self._study_id).get(key)

    def set_note(self, key: str, value: Mapping[str, Any]) -> None:
        """Leave a note (JSON values) with the study for another process; written at once."""
        self._storage.set_study_user_attr(self._study_id, key, dict(value))

    def delete(self) -> None:
        """Remove the study's rows (those of other studies in the same database stay)."""
        self._storage.delete_study(self._study_id)

    def _create(self) -> int:
        try:
            return self._storage.create_new_study([StudyDirection.MAXIMIZE], self.name)
        except optuna.exceptions.DuplicatedStudyError:
            raise taken(self.name) from None

    def _raise_error(self) -> None:
        if self._error is not None:
            reason = str(self._error.__cause__ or self._error).splitlines()[0]
            raise StudyError(f"the record of {self.name} cannot be written: {reason}") from self._error

    def _put(self, job: _Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="sctune-record", daemon=True)
            self._thread.start()
        with self._lock:
            self._queue(job)

    def _queue(self, job: _Job | _Then) -> None:
        self._jobs.append(job)
        self._pending += 1
        self._some.set()

    def _work(self) -> None:
        while self._jobs or not self._closing.is_set():
            self._some.wait()
            self._some.clear()
            jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), MAX_BATCH))]
            if jobs:
                self._take(jobs)
                self._hurry.wait(GATHER_S)
                self._hurry.clear()
            if self._jobs:
                self._some.set()
        self._storage.remove_session()

    def _take(self, jobs: list[_Job | _Then]) -> None:
        batch = Batch(self._over)
        for job in jobs:
            if not isinstance(job, _Then):
                job(batch)
        # after a failed write later ones would leave holes; the searcher's next question ends the search
        if self._error is None:
            try:
                with_retries(lambda: self._write(batch))
            except Exception as problem:  # whatever it is, it is raised again on the driver's thread
                self._error = problem
        for job in jobs:
            if isinstance(job, _Then) and (job.always or self._error is None):
                job.call()
        with self._lock:
            self._pending -= len(jobs)

    def _write(self, batch: Batch) -> None:
        try:
            self._trial_ids |= write(self._storage, self._study_id, self._trial_ids, batch)
        except StorageInternalError as problem:
            self.trouble = str(problem.__cause__ or problem).splitlines()[0]
            raise
        self.trouble = None


class Sink(Protocol):
    """What takes events of the tracking (a Writer)."""

    def put(self, event: dict[str, Any]) -> None: ...


class AfterRecord:
    """Hands events of the tracking on when the record holds what they tell: MLflow never knows more than the record."""

    def __init__(self, record: Record, sink: Sink) -> None:
        self._record, self._sink = record, sink

    def put(self, event: dict[str, Any]) -> None:
        """Events of the study itself go on even where the record failed."""
        self._record.then(lambda: self._sink.put(event), always=event.get("trial") is None)


def reports_of(trial: FrozenTrial) -> dict[int, dict[str, Any]]:
    """Epoch -> {"metrics", "time"} of a stored trial, ascending."""
    found = {
        int(key.removeprefix(REPORT_PREFIX)): value
        for key, value in trial.user_attrs.items()
        if key.startswith(REPORT_PREFIX)
    }
    return dict(sorted(found.items()))
