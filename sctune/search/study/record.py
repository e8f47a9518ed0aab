"""The durable record of a study: an Optuna storage, written by one background thread in the order of events.

The suggester works on a study in memory; what the record is told is queued and written a moment later, all that has
gathered meanwhile in one transaction. So a driver that is killed leaves a record that ends a moment earlier, never
one with holes. Trial numbers in the record equal those in memory. Attributes that hold pickles are not stored.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal, Protocol, TypeAlias

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DataError, IntegrityError, NotSupportedError, ProgrammingError, SQLAlchemyError

from sctune.errors import FencedError, StudyError
from sctune.metrics.objective import AUROC
from sctune.report import EpochReport
from sctune.search.study.database import (
    DATABASE_ERRORS,
    NoRecordError,
    check_is_record,
    close_database,
    open_database,
    taken,
    unreachable,
    with_retries,
)
from sctune.search.study.record_sql import Attrs, EpochRow, Finish, RecordSql, Start, StudyAttrs, Write
from sctune.search.suggest.optuna_private import trial_id
from sctune.urls import without_secrets

REPORT_PREFIX = "report:"
"""User attribute `report:<epoch>`: {"metrics": {...}, "time": first arrival in ms since 1970}."""

PAUSED, PROMOTED = "paused", "promoted"
"""User attributes of a trial: the epoch after which it was last paused, and the last one that it was promoted past."""

TAKEN = "taken"
"""User attribute {"cpus", "gpus"} of a trial whose share of a GPU is its own: what it had, of its latest attempt."""

PROPOSAL = "proposal"
"""User attribute of a trial of a study with priors: who proposed it, and the shares of the priors by then."""

REFERENCE_PREFIX = "sctune:reference:"
"""Study attributes about references; samplers never see them."""

GATHER_S = 0.25
"""How long a write waits for others to share its transaction; nobody waits for it."""

SLOW_S = 10.0
"""A transaction that takes longer is trouble."""

LONGEST_PAUSE_S = 10.0
_BATCH = 500
_FOR_GOOD = (DataError, IntegrityError, NotSupportedError, ProgrammingError)
"""Errors that no repetition mends."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Then:
    """Called when everything queued before it has been written; always: also when it never will be."""

    call: Callable[[], None]
    always: bool


_Item: TypeAlias = Write | _Then


class Record:
    """One study's rows. All writes are queued and kept until the database has taken them, however long that takes.

    A database that is away, locked or full shows in `trouble`; what no repetition mends is raised by `check` and
    `flush`. foreign: numbers of trials that something else than sctune put there, as `load` found them.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        create: bool = False,
        fencing: int | None = None,
        direction: Literal["maximize", "minimize"] = AUROC.direction,
    ) -> None:
        """Open the record of study `name` at an SQLAlchemy URL; `create` makes it and refuses an existing one.

        direction: of a new record, for programs that show it, such as optuna-dashboard. fencing: of the lock that the
        driver holds (see RecordSql). Raises StudyError when the database cannot be reached, or the study is there
        already or missing.
        """
        self.name = name
        self.foreign: tuple[int, ...] = ()
        if not create:
            check_is_record(url)
        try:
            self._storage = open_database(url)
            self._study_id = self._create(direction) if create else self._storage.get_study_id_from_name(name)
        except KeyError:
            raise NoRecordError(f"the record at {without_secrets(url, shown=True)} holds no study {name!r}") from None
        except DATABASE_ERRORS as problem:
            raise unreachable(url, problem) from None
        self._sql = RecordSql(self._storage.engine, self._study_id, fencing)
        self._queue: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._waiting_for_it = self._closing = False
        self._error: Exception | None = None
        self._trouble: str | None = None
        self._writing_since: float | None = None
        self._hurry_until: float | None = None
        self._thread: threading.Thread | None = None

    @property
    def trouble(self) -> str | None:
        """Why writes do not arrive at present, in one line; None when they do. They are tried until they arrive."""
        since = self._writing_since
        if self._trouble is None and since is not None and time.monotonic() - since > SLOW_S:
            return f"the record of {self.name} has waited {time.monotonic() - since:.0f} s for its database"
        return self._trouble

    @property
    def fenced(self) -> bool:
        """Whether another driver has the study by now; nothing that this one tells is written any more."""
        return isinstance(self._error, FencedError)

    def check(self) -> None:
        """Raises StudyError when a write failed for good; waits for nothing."""
        if self._error is not None:
            raise StudyError(f"the record of {self.name} cannot be written: {_reason(self._error)}") from self._error

    def load(self) -> list[FrozenTrial]:
        """Trials in order of their numbers, foreign ones left out, after all that is queued has been written."""
        self.flush()
        stored = with_retries(lambda: self._storage.get_all_trials(self._study_id))
        trials = sorted(stored, key=lambda trial: trial.number)
        self._sql.ids = {trial.number: trial_id(trial) for trial in trials}
        self.foreign = tuple(trial.number for trial in trials if _is_foreign(trial))
        return [trial for trial in trials if trial.number not in self.foreign]

    @property
    def foreign_note(self) -> str | None:
        """One line that names the foreign trials; None where there are none."""
        if not self.foreign:
            return None
        shown = ", ".join(map(str, self.foreign[:5])) + (", ..." if len(self.foreign) > 5 else "")
        one = len(self.foreign) == 1
        return (
            f"trial{'' if one else 's'} {shown} of the record {'was' if one else 'were'} put there by another program "
            f"and {'is' if one else 'are'} left out"
        )

    def load_study_attrs(self) -> dict[str, Any]:
        """What samplers keep with the study (the place in a QMC sequence, NSGA-II's parents)."""
        return {key: value for key, value in self._study_attrs().items() if not key.startswith(REFERENCE_PREFIX)}

    def load_references(self) -> dict[str, Any]:
        """What `tell_reference` was told, under the names that it was told with."""
        return {
            key.removeprefix(REFERENCE_PREFIX): value
            for key, value in self._study_attrs().items()
            if key.startswith(REFERENCE_PREFIX)
        }

    def tell_reference(self, name: str, content: Mapping[str, Any]) -> None:
        """The result of a reference on a task (JSON values); told again it replaces what was told before."""
        self._put(StudyAttrs({f"{REFERENCE_PREFIX}{name}": dict(content)}))

    def start(self, frozen: FrozenTrial) -> None:
        """A new running trial with its parameters and attributes."""
        self._put(Start(frozen))

    def set_attrs(self, number: int, attrs: Mapping[str, Any]) -> None:
        """User attributes of an unfinished trial (JSON values)."""
        self._put(Attrs(number, dict(attrs)))

    def set_study_attrs(self, attrs: Mapping[str, Any]) -> None:
        if attrs:
            self._put(StudyAttrs(dict(attrs)))

    def report(self, number: int, report: EpochReport, timestamp_ms: int) -> None:
        """One epoch of a running trial; the same epoch again replaces it."""
        attrs: dict[str, Any] = {
            f"{REPORT_PREFIX}{report.epoch}": {"metrics": dict(report.metrics), "time": timestamp_ms}
        }
        if report.scores:
            attrs["scores"] = {key: list(values) for key, values in report.scores.items()}
        self._put(EpochRow(number, report.epoch, report.value, attrs))

    def finish(self, number: int, state: TrialState, value: float | None, attrs: Mapping[str, Any]) -> None:
        """The end of a trial: COMPLETE, PRUNED or FAIL; told again it changes nothing."""
        self._put(Finish(number, state, value, dict(attrs), datetime.now()))

    def then(self, call: Callable[[], None], *, always: bool = False) -> None:
        """Call once everything queued so far is in the database: in the record's thread, at once if it is there.

        What is told to others this way is never ahead of the record, wherever the driver is killed. The call must be
        quick. After a write that failed for good it is not made, or with `always` it is made all the same.
        """
        with self._changed:
            waits = bool(self._queue)
        if waits:
            self._put(_Then(call, always))
        elif always or self._error is None:
            call()

    def hurry(self, seconds: float) -> None:
        """The launch is being stopped: whoever waits here, waits `seconds` from now at most.

        Takes no lock, so a signal handler may call it.
        """
        self._hurry_until = time.monotonic() + seconds

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until nothing is queued any more, written or not; False when the time is over (see `flush`)."""
        if self._thread is None:
            return True
        done = threading.Event()
        self._put(_Then(done.set, always=True), urgent=True)
        started = time.monotonic()
        while not done.wait(0.1):
            ends = [] if timeout is None else [started + timeout]
            # a database that answers gets its moment even when the hurry is over
            ends += [] if self._hurry_until is None else [max(self._hurry_until, started + 2.0)]
            if ends and time.monotonic() > min(ends):
                return False
        return True

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all queued writes are done; `timeout` in seconds, None: as long as the database takes.

        Raises StudyError when a write failed for good, or the time is over (`hurry` may end it sooner).
        """
        started = time.monotonic()
        settled = self.settle(timeout)
        self.check()
        if not settled:
            waited = f"{time.monotonic() - started:.0f} s"
            reason = f": {self.trouble}" if self.trouble else ""
            raise StudyError(f"the record of {self.name} did not take its writes within {waited}{reason}")

    def close(self, timeout: float | None = None) -> None:
        """Write what is queued, end the thread and let go of the database; see `flush` for `timeout`."""
        try:
            self.flush(timeout)
        finally:
            thread, self._thread = self._thread, None
            if thread is not None:
                with self._changed:
                    self._closing = True
                    self._changed.notify()
                thread.join(5.0)
            # a thread that hangs in the database's own waiting is left behind with its connection
            if thread is None or not thread.is_alive():
                close_database(self._storage)

    def delete(self) -> None:
        """Remove the study's rows (those of other studies in the same database stay)."""
        self._storage.delete_study(self._study_id)

    def _study_attrs(self) -> dict[str, Any]:
        self.flush()
        return dict(with_retries(lambda: self._storage.get_study_system_attrs(self._study_id)))

    def _create(self, direction: str) -> int:
        try:
            return self._storage.create_new_study([StudyDirection[direction.upper()]], self.name)
        except optuna.exceptions.DuplicatedStudyError:
            raise taken(self.name) from None

    def _put(self, item: _Item, urgent: bool = False) -> None:
        with self._changed:
            self._queue.append(item)
            self._waiting_for_it |= urgent
            if urgent or len(self._queue) == 1:
                self._changed.notify()
        if self._thread is None:
            self._closing = False
            self._thread = threading.Thread(target=self._work, name="sctune-record", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                # after a write that failed for good later ones would leave a hole
                if self._error is None and not self._write([item for item in batch if not isinstance(item, _Then)]):
                    return
            except Exception as problem:  # whatever it is, `check` raises it again on the driver's thread
                self._error = problem
            self._writing_since = None
            for item in batch:
                if isinstance(item, _Then) and (item.always or self._error is None):
                    self._call(item)
            with self._changed:
                for _ in batch:
                    self._queue.popleft()

    def _call(self, item: _Then) -> None:
        try:
            item.call()
        except Exception as problem:
            self._error = self._error or problem

    def _next_batch(self) -> list[_Item]:
        """What is queued, once there is something; empty at the end. It stays in the queue until it is written."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._changed.wait_for(lambda: self._waiting_for_it or self._closing, GATHER_S)
            batch = list(islice(self._queue, _BATCH))
            self._waiting_for_it = len(batch) < len(self._queue)
            return batch

    def _write(self, writes: list[Write]) -> bool:
        """Write until it is written; False where `close` ended the waiting."""
        self._writing_since = time.monotonic()
        pause = 0.5
        while writes:
            try:
                self._sql.write(writes)
                break
            except _FOR_GOOD:
                raise
            except SQLAlchemyError as problem:
                line = f"the record of {self.name} waits for its database: {_reason(problem)}"
                if line != self._trouble:
                    _log.warning("%s", line)
                self._trouble = line
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, pause):
                    return False
            pause = min(2 * pause, LONGEST_PAUSE_S)
        self._trouble = None
        return True


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
    """Epoch -> {"metrics", "time"} of a stored trial, ascending; one whose value a kill kept out is not there."""
    found = {
        int(key.removeprefix(REPORT_PREFIX)): value
        for key, value in trial.user_attrs.items()
        if key.startswith(REPORT_PREFIX)
    }
    # a report is complete when its value is there
    return {epoch: found[epoch] for epoch in sorted(found) if epoch in trial.intermediate_values}


def events_of(trials: Iterable[FrozenTrial]) -> list[tuple[int, int | None]]:
    """(number, epoch) of each report of stored trials, (number, None) of each end before a last epoch, as they came."""
    found: list[tuple[float, bool, int, int | None]] = []
    for trial in trials:
        times = {epoch: report["time"] for epoch, report in reports_of(trial).items()}
        found += [(time, False, trial.number, epoch) for epoch, time in times.items()]
        if trial.state in (TrialState.FAIL, TrialState.PRUNED):
            ended = 0.0 if trial.datetime_complete is None else 1000 * trial.datetime_complete.timestamp()
            found.append((max([ended, *times.values()]), True, trial.number, None))
    return [(number, epoch) for _, _, number, epoch in sorted(found, key=lambda one: one[:3])]


def _is_foreign(trial: FrozenTrial) -> bool:
    """Whether another program made it: sctune starts a trial together with its attributes, in one transaction."""
    return not {"params", "attempt", "launch"} & trial.user_attrs.keys()


def _reason(problem: BaseException) -> str:
    """The database's own words, one line, without the statement."""
    cause = getattr(problem, "orig", None) or problem.__cause__ or problem
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
