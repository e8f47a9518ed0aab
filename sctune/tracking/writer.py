"""The way from the search to MLflow: a queue, a journal on disk, and one sender that never gets in the way.

`put` only appends to a queue. One background thread moves the queue to the journal; a second one reads the
journal and sends, since a server that hangs must not keep events from the disk. What was not delivered when
a process died is sent by the next writer on the same journal.
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
from sctune.tracking.runs import Runs
from sctune.tracking.server import scrub

_POLL_S = 0.2
_SYNC_S = 1.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_BATCH = 500

_log = logging.getLogger(__name__)


class Writer:
    """Sends events to the MLflow store at `tracking_uri`, in order, each at least once, with the effect of once.

    Raises TrackingError when the journal cannot be written; nothing after that raises into the search.
    last_error: why the last attempt failed, one line without credentials; None after a success.
    """

    def __init__(self, tracking_uri: str, journal: Path) -> None:
        self.last_error: str | None = None
        self._uri = tracking_uri
        self._journal = Journal(journal)
        self._queue: deque[Event] = deque()
        self._runs: Runs | None = None
        self._closed, self._hurry = Flag(), Flag()
        self._keeper = Thread(target=self._keep, daemon=True, name="sctune-journal")
        self._sender = Thread(target=self._deliver, daemon=True, name="sctune-mlflow")
        self._keeper.start()
        self._sender.start()

    def put(self, event: Event) -> None:
        """Hand over an event; returns at once. The caller must not change it afterwards."""
        self._queue.append(event)

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
                    self._journal.append(block)
                    for _ in block:
                        self._queue.popleft()
                if closing or time.monotonic() - synced >= _SYNC_S:
                    self._journal.sync()
                    synced = time.monotonic()
            except OSError as problem:  # a full disk: the queue keeps the events
                self._note(problem)
            if closing:
                self._journal.close()
                return
            self._closed.wait(_POLL_S)

    def _deliver(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._closed.is_set():
            try:
                delivered = self._deliver_batch()
                self.last_error, pause = None, _FIRST_PAUSE_S
                if not delivered:
                    self._closed.wait(_POLL_S / 2)
            except Exception as problem:
                self._note(problem)
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _deliver_batch(self) -> bool:
        events, last = self._journal.read(_BATCH)
        if not events:
            return False
        if self._runs is None:
            self._runs = Runs(self._uri)
        self._runs.apply(events)
        if not self._closed.is_set():
            self._journal.mark_delivered(last)
        return True

    def _rest(self, seconds: float) -> None:
        """Pause between attempts; half a second at most while somebody waits for the rest to arrive."""
        end = time.monotonic() + seconds
        rested = 0.0
        while not self._closed.is_set() and time.monotonic() < end and not (self._hurry.is_set() and rested >= 0.5):
            self._closed.wait(0.1)
            rested += 0.1

    def _note(self, problem: Exception) -> None:
        line = scrub(problem, self._uri)
        if line != self.last_error:
            _log.warning("tracking is waiting: %s", line)
        self.last_error = line
