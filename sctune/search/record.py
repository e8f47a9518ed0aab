"""The durable record of a study: an Optuna storage, written by one background thread in the order of events.

The searcher works on a study in memory; a write here costs 5 to 50 ms on SQLite, off the driver's critical path.
Trial numbers in the record equal those in memory. Attributes that hold pickles are not stored.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import optuna
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

REPORT_PREFIX = "report:"
"""User attribute `report:<epoch>`: {"metrics": {...}, "time": first arrival in ms since 1970}."""

_Job = Callable[[], None]


class NoRecordError(StudyError):
    """The database answers, and holds no study of this name."""


class Record:
    """One study's rows. All writes are queued; errors of the thread are raised by the next `flush`."""

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
        self._trial_ids: dict[int, int] = {}
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def load(self) -> list[FrozenTrial]:
        """All trials in order of their numbers, after everything queued so far has been written."""
        self.flush()
        stored = with_retries(lambda: self._storage.get_all_trials(self._study_id))
        trials = sorted(stored, key=lambda trial: trial.number)
        self._trial_ids = {trial.number: trial._trial_id for trial in trials}
        return trials

    def load_study_attrs(self) -> dict[str, Any]:
        """What samplers keep with the study (the place in a QMC sequence, NSGA-II's parents)."""
        self.flush()
        return dict(with_retries(lambda: self._storage.get_study_system_attrs(self._study_id)))

    def start(self, frozen: FrozenTrial) -> None:
        """A new running trial with its parameters and attributes."""
        self._put(lambda: self._start(frozen))

    def set_attrs(self, number: int, attrs: Mapping[str, Any]) -> None:
        """User attributes of an unfinished trial (JSON values)."""
        kept = dict(attrs)
        self._put(lambda: self._set_attrs(number, kept))

    def set_study_attrs(self, attrs: Mapping[str, Any]) -> None:
        kept = dict(attrs)
        self._put(lambda: self._set_study_attrs(kept))

    def report(self, number: int, report: Mapping[str, Any], timestamp_ms: int) -> None:
        """One epoch of a running trial (EpochReport.to_dict()); the same epoch again replaces it."""
        epoch, value = int(report["epoch"]), float(report[OBJECTIVE])
        attrs = {f"{REPORT_PREFIX}{epoch}": {"metrics": dict(report["metrics"]), "time": timestamp_ms}}
        if report.get("scores"):
            attrs["scores"] = dict(report["scores"])
        self._put(lambda: self._report(number, epoch, value, attrs))

    def finish(self, number: int, state: TrialState, value: float | None, attrs: Mapping[str, Any]) -> None:
        """The end of a trial: COMPLETE, PRUNED or FAIL; told again it changes nothing."""
        kept = dict(attrs)
        self._put(lambda: self._finish(number, state, value, kept))

    def then(self, job: Callable[[], None]) -> None:
        """Run `job` in the writing thread once everything queued so far has been written; it must not raise."""
        self._put(job)

    def flush(self, timeout: float = 120.0) -> None:
        """Wait until all queued writes are done; raises StudyError if one failed or `timeout` seconds passed."""
        if self._thread is not None and self._error is None:
            done = threading.Event()
            self._jobs.put(done.set)
            deadline = time.monotonic() + timeout
            while not done.wait(0.2) and self._error is None:
                if time.monotonic() > deadline:
                    raise StudyError(f"the record of {self.name} did not take its writes within {timeout:g} s")
        if self._error is not None:
            reason = str(self._error.__cause__ or self._error).splitlines()[0]
            raise StudyError(f"the record of {self.name} cannot be written: {reason}") from self._error

    def close(self) -> None:
        """Write what is queued, end the thread and let go of the database."""
        try:
            self.flush()
        finally:
            if self._thread is not None:
                self._jobs.put(None)
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

    def _put(self, job: _Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="sctune-record", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            # after a failed write later ones would leave holes; the next flush stops the search
            if self._error is None:
                try:
                    with_retries(job)
                except Exception as problem:  # whatever it is, flush raises it again on the driver's thread
                    self._error = problem
        self._storage.remove_session()

    def _start(self, frozen: FrozenTrial) -> None:
        if self._written_before(frozen):
            return
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=frozen.params,
            distributions=frozen.distributions,
            user_attrs=frozen.user_attrs,
            system_attrs=without_pickles(frozen.system_attrs),
        )
        template.datetime_start = frozen.datetime_start
        self._trial_ids[frozen.number] = self._storage.create_new_trial(self._study_id, template)
        number = self._storage.get_trial_number_from_id(self._trial_ids[frozen.number])
        if number != frozen.number:
            raise StudyError(f"trial {frozen.number} became {number} in the record; another driver writes to it")

    def _written_before(self, frozen: FrozenTrial) -> bool:
        """Whether an earlier try wrote the row and only its reply was lost."""
        try:
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, frozen.number)
        except KeyError:
            return False
        if self._storage.get_trial(trial_id).datetime_start != frozen.datetime_start:
            raise StudyError(f"the record holds another trial {frozen.number}; another driver writes to it")
        self._trial_ids[frozen.number] = trial_id
        return True

    def _set_attrs(self, number: int, attrs: Mapping[str, Any]) -> None:
        for key, value in attrs.items():
            self._storage.set_trial_user_attr(self._trial_ids[number], key, value)

    def _set_study_attrs(self, attrs: Mapping[str, Any]) -> None:
        for key, value in attrs.items():
            self._storage.set_study_system_attr(self._study_id, key, value)

    def _report(self, number: int, epoch: int, value: float, attrs: Mapping[str, Any]) -> None:
        # the value last: a reader that sees an epoch's value finds its metrics too
        self._set_attrs(number, attrs)
        self._storage.set_trial_intermediate_value(self._trial_ids[number], epoch, value)

    def _finish(self, number: int, state: TrialState, value: float | None, attrs: Mapping[str, Any]) -> None:
        trial_id = self._trial_ids[number]
        if self._storage.get_trial(trial_id).state.is_finished():
            return
        self._set_attrs(number, attrs)
        self._storage.set_trial_state_values(trial_id, state, None if value is None else [value])


def without_pickles(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's system attributes but for CMA-ES's, which hold a pickled optimizer."""
    return {key: value for key, value in attrs.items() if not key.startswith("cma:")}


def reports_of(trial: FrozenTrial) -> dict[int, dict[str, Any]]:
    """Epoch -> {"metrics", "time"} of a stored trial, ascending; one whose value a kill kept out is not there."""
    found = {
        int(key.removeprefix(REPORT_PREFIX)): value
        for key, value in trial.user_attrs.items()
        if key.startswith(REPORT_PREFIX)
    }
    return {epoch: found[epoch] for epoch in sorted(found) if epoch in trial.intermediate_values}
