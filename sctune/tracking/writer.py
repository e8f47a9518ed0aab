"""The way from the search to MLflow: a queue, a journal on disk, and one sender that never gets in the way.

`put` only appends to a queue. One background thread moves the queue to the journal; a second one reads the
journal and sends, since a server that hangs must not keep events from the disk. What was not delivered when
a process died is sent by the next writer on the same journal. Where the journal cannot be written (a full disk) the
queue holds a bounded number of events; later ones are left out, and `owed` says that the record must be replayed.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path
from threading import Event as Flag
from threading import Thread

from sctune.tracking.events import Event
from sctune.tracking.journal import Journal
from sctune.tracking.owed import OwedMark
from sctune.tracking.runs import Runs
from sctune.tracking.server import scrub

_POLL_S = 0.2
_SYNC_S = 1.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_BATCH = 500
_SMALL_BATCH = 100
_SHARE = 9.0
"""The sender rests this many times as long as it sent: client and server take the cores that trials need."""
_LONGEST_BREATH_S = 3.0
_BEHIND_S = 30.0
"""After so long without having caught up the sender rests no longer than it sent."""
QUEUE_LIMIT = 10_000
"""Events that wait for the journal: some 50 MB."""

_log = logging.getLogger(__name__)


class Writer:
    """Sends events to the MLflow store at `tracking_uri`, in order, each at least once, with the effect of once.

    Raises TrackingError when the journal cannot be written; nothing after that raises into the search.
    last_error: why the last attempt failed, one line without credentials; None after a success. lost: events that
    this writer had no room for. queue_limit: events that may wait for the journal.
    """

    def __init__(self, tracking_uri: str, journal: Path, queue_limit: int = QUEUE_LIMIT) -> None:
        self.lost = 0
        self._no_journal: str | None = None
        self._no_answer: str | None = None
        self._uri = tracking_uri
        self._limit = queue_limit
        self._owes = False
        self._journal = Journal(journal)
        self._mark = OwedMark(journal.with_name(journal.name + ".owed"))
        self._queue: deque[Event] = deque()
        self._runs: Runs | None = None
        self._closed, self._hurry = Flag(), Flag()
        self._keeper = Thread(target=self._keep, daemon=True, name="sctune-journal")
        self._sender = Thread(target=self._deliver, daemon=True, name="sctune-mlflow")
        self._keeper.start()
        self._sender.start()

    def put(self, event: Event) -> None:
        """Hand over an event; returns at once. The caller must not change it afterwards."""
        if len(self._queue) < self._limit:
            self._queue.append(event)
        else:
            self.lost += 1
            self._owes = True  # the keeper writes it down

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until half of the queue is free, for who hands over many events in a row; False: it still is not."""
        end = time.monotonic() + timeout_s
        while len(self._queue) > self._limit // 2 and time.monotonic() < end:
            time.sleep(0.02)
        return len(self._queue) <= self._limit // 2

    @property
    def owed(self) -> bool:
        """Whether events were lost, in this process or an earlier one, and the record was not replayed since."""
        return bool(self._mark) or self._owes

    def replayed(self) -> None:
        """The whole record was put into this writer after the last loss."""
        self._owes = False
        self._mark.clear()

    @property
    def last_error(self) -> str | None:
        return self._no_journal or self._no_answer

    @property
    def undelivered(self) -> int:
        """Events that have not reached MLflow yet."""
        return len(self._queue) + self._journal.last - self._journal.delivered

    @property
    def rejected(self) -> int:
        """Entries that MLflow refused for good in this process; each was logged as a warning."""
        return self._runs.rejected if self._runs else 0

    @property
    def parent_run_id(self) -> str | None:
        """Run of the study, once this writer has found or made it."""
        return self._runs.parent_run_id if self._runs else None

    def drain(self, timeout_s: float) -> int:
        """Wait until everything has arrived, `timeout_s` seconds at most; gives the number of events left."""
        end = time.monotonic() + timeout_s
        self._hurry.set()
        while self.undelivered and time.monotonic() < end:
            time.sleep(0.02)
        self._hurry.clear()
        return self.undelivered

    def close(self) -> None:
        """Write what is queued to the journal and stop; what is undelivered waits for the next writer."""
        self._closed.set()
        self._hurry.set()
        self._keeper.join(5)
        # a sender inside a request that hangs is left behind; it will not touch the cursor any more
        self._sender.join(1)

    def _keep(self) -> None:
        synced = time.monotonic()
        while True:
            closing = self._closed.is_set()
            try:
                while self._queue:
                    # events leave the queue only after they are written, so that `undelivered` never misses one
                    block = [self._queue[i] for i in range(min(len(self._queue), _BATCH))]
                    if self._journal.append(block):
                        self._owes = True
                    for _ in block:
                        self._queue.popleft()
                if closing or time.monotonic() - synced >= _SYNC_S:
                    self._journal.sync()
                    self._journal.compact()
                    synced = time.monotonic()
                self._no_journal = None
            except OSError as problem:  # a full disk: the queue keeps the events
                self._no_journal = self._noted(problem, self._no_journal)
            if self._owes or (closing and self._queue):
                self._mark.set()
            if closing:
                self._journal.close()
                return
            self._closed.wait(_POLL_S)

    def _deliver(self) -> None:
        pause = _FIRST_PAUSE_S
        caught_up = time.monotonic()
        while not self._closed.is_set():
            try:
                begun = time.monotonic()
                limit = _BATCH if self._hurry.is_set() or begun - caught_up > _BEHIND_S else _SMALL_BATCH
                delivered = self._deliver_batch(limit)
                self._no_answer, pause = None, _FIRST_PAUSE_S
                sent = time.monotonic()
                if delivered < limit:
                    caught_up = sent
                if delivered:
                    share = 1.0 if sent - caught_up > _BEHIND_S else _SHARE
                    self._breathe(min(share * (sent - begun), _LONGEST_BREATH_S))
                else:
                    self._closed.wait(_POLL_S / 2)
            except Exception as problem:
                self._no_answer = self._noted(problem, self._no_answer)
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _deliver_batch(self, limit: int) -> int:
        events, last = self._journal.read(limit)
        if not events:
            return 0
        if self._runs is None:
            self._runs = Runs(self._uri)
        try:
            self._runs.apply(events)
        finally:
            if self._runs.incomplete:
                self._runs.incomplete, self._owes = False, True
        if not self._closed.is_set():
            self._journal.mark_delivered(last)
        return len(events)

    def _breathe(self, seconds: float) -> None:
        """Let more gather for fewer and larger requests; not while somebody waits for the rest to arrive."""
        end = time.monotonic() + seconds
        while not self._closed.is_set() and not self._hurry.is_set() and time.monotonic() < end:
            self._closed.wait(min(0.1, seconds))

    def _rest(self, seconds: float) -> None:
        """Pause between attempts; half a second at most while somebody waits for the rest to arrive."""
        end = time.monotonic() + seconds
        rested = 0.0
        while not self._closed.is_set() and time.monotonic() < end and not (self._hurry.is_set() and rested >= 0.5):
            self._closed.wait(0.1)
            rested += 0.1

    def _noted(self, problem: Exception, before: str | None) -> str:
        """One line without credentials, logged where it is news."""
        line = scrub(problem, self._uri)
        if line != before:
            _log.warning("tracking is waiting: %s", line)
        return line
