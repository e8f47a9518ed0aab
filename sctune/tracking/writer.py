"""The one way from a search to MLflow: a bounded queue in memory, and comparing with the record where that may not do.

The study's record is the only durable log; nothing is written down a second time. What that guarantees:

1. MLflow never knows more than the record: an event is put here after the record holds what it tells.
2. While the process lives and the queue has room, every event arrives, in order, with the effect of once, however
   long MLflow hangs, refuses, or is away: a request is repeated until it is answered, and repeating changes nothing.
3. Whatever may be missing besides is in the record, and `repair` (compare, then mend) brings it. There is doubt where
   the queue was full, MLflow refused something, lost a run, or came back after errors, and wherever an earlier process
   ended: a launch that goes on begins with doubt. In doubt the sender compares and mends when the queue is empty, and
   again at the launch's end; `sctune sync` does so at any time. So once MLflow answers, the runs become what the
   record says, at the latest by a `sync`; `status --check` names what differs until then.
4. The search never waits: `put` only appends, one thread does all the rest, and memory is bounded by `queue_limit`.

Comparing and mending happen in the sender's thread between two batches. What they read of the record is at least as
new as every event sent before, and events that come later are sent later, so no run is set back for good.

In no record, and lost with the process where MLflow has not taken it yet: why a trial waits, the error of a launch that
broke off, and the tag `model_uri`. A failure's traceback is in the trial's log, which a repair reads.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Event as Flag
from threading import Thread
from typing import Any, TypeAlias, TypeVar

from sctune.errors import TrackingError
from sctune.tracking.events import Event
from sctune.tracking.runs import Runs
from sctune.tracking.sending import RunGoneError
from sctune.tracking.server import safe_uri, scrub

Apply: TypeAlias = Callable[[Sequence[Event]], None]
"""Sends events at once; raises what is worth trying again."""
Result = TypeVar("Result")

_POLL_S = 0.1
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_BATCH = 500
_SMALL_BATCH = 100
_SHARE = 9.0
"""The sender rests this many times as long as it worked: client and server take the cores that trials need."""
_LONGEST_BREATH_S = 3.0
_BEHIND_S = 30.0
"""After so long without having caught up the sender rests no longer than it sent."""
_REPAIR_EVERY_S = 30.0
"""Repairs while idle are at least so far apart: each reads all runs of the study."""
QUEUE_LIMIT = 10_000
"""Events that wait for MLflow: some 50 MB."""

_log = logging.getLogger(__name__)


class _InterruptedError(Exception):
    """An idle repair gives way: the launch ends, or the writer is closed."""


class _Job:
    """A repair that somebody waits for."""

    def __init__(self, work: Callable[[Apply], Any]) -> None:
        self.work = work
        self.done = Flag()
        self.result: Any = None


class Writer:
    """Sends events to the MLflow store at `tracking_uri`; nothing that happens there raises into the search.

    last_error: why the last attempt failed, one line without credentials; None after a success. dropped: events that
    the queue had no room for. queue_limit: events that may wait.
    """

    def __init__(
        self, tracking_uri: str, when_idle: Callable[[Apply], object] | None = None, queue_limit: int = QUEUE_LIMIT
    ) -> None:
        """when_idle: compares with the record, and applies what the runs lack, until the launch's end is put here."""
        self.last_error: str | None = None
        self.dropped = 0
        self._doubted_at, self._settled_at = -math.inf, 0.0
        self._uri = tracking_uri
        self._when_idle = when_idle
        self._limit = queue_limit
        self._queue: deque[Event] = deque()
        self._job: _Job | None = None
        self._runs: Runs | None = None
        self._failing_since: float | None = None
        self._next_repair = 0.0
        self._closed, self._hurry = Flag(), Flag()
        self._sender = Thread(target=self._work, daemon=True, name="sctune-mlflow")
        self._sender.start()

    def put(self, event: Event) -> None:
        """Hand over an event; returns at once. The caller must not change it afterwards."""
        if event.get("kind") == "study_end":
            # what repairs while the launch runs would open the study's run again
            self._when_idle = None
        if len(self._queue) < self._limit:
            self._queue.append(event)
        else:
            self.dropped += 1
            self.doubt()

    def doubt(self) -> None:
        """MLflow may lack something that no event in the queue brings; compared and mended when the queue is empty."""
        self._doubted_at = time.monotonic()

    @property
    def doubted(self) -> bool:
        """Whether there was doubt at some time of this process."""
        return self._doubted_at > -math.inf

    @property
    def in_doubt(self) -> bool:
        """Whether no comparison that began after the last doubt has been done."""
        return self._doubted_at >= self._settled_at

    @property
    def undelivered(self) -> int:
        """Events that have not reached MLflow yet."""
        return len(self._queue)

    @property
    def rejected(self) -> int:
        """Entries that MLflow refused for good; each was logged as a warning."""
        return self._runs.rejected if self._runs else 0

    @property
    def parent_run_id(self) -> str | None:
        """Run of the study, once this writer has found or made it."""
        return self._runs.parent_run_id if self._runs else None

    def drain(self, timeout_s: float) -> int:
        """Wait until everything in the queue has arrived, `timeout_s` seconds at most; gives the number left."""
        end = time.monotonic() + timeout_s
        self._hurry.set()
        while self._queue and time.monotonic() < end:
            time.sleep(0.02)
        self._hurry.clear()
        return len(self._queue)

    def repair(self, work: Callable[[Apply], Result], timeout_s: float, patience_s: float | None = None) -> Result:
        """What `work` gives, called by the sender when the queue is empty, again and again until it raises nothing.

        It is to compare the runs with the record and to apply what they lack; that settles all doubt.
        Raises TrackingError, with what MLflow said last, when it is not done after `timeout_s` seconds, or after
        `patience_s` seconds in which MLflow did not take anything.
        """
        job = self._job = _Job(work)
        end = time.monotonic() + timeout_s
        self._hurry.set()
        try:
            while not job.done.wait(0.02):
                now, since = time.monotonic(), self._failing_since
                stuck = patience_s is not None and since is not None and now - since > patience_s
                if now > end or stuck:
                    raise TrackingError(self.last_error or f"{safe_uri(self._uri)} did not take it within the time")
        finally:
            self._job = None
            self._hurry.clear()
        result: Result = job.result
        return result

    def close(self) -> None:
        """Stop; what is undelivered then is in the record, and the next launch or `sync` brings it."""
        self._closed.set()
        self._hurry.set()
        # a sender inside a request that hangs is left behind
        self._sender.join(1)

    def _work(self) -> None:
        pause = _FIRST_PAUSE_S
        caught_up = time.monotonic()
        while not self._closed.is_set():
            try:
                begun = time.monotonic()
                limit = _BATCH if self._hurry.is_set() or begun - caught_up > _BEHIND_S else _SMALL_BATCH
                sent = self._send(limit)
                busy = sent > 0 or self._repair()
                if busy:
                    self.last_error = self._failing_since = None
                    pause = _FIRST_PAUSE_S
                now = time.monotonic()
                if sent < limit:
                    caught_up = now
                share = 1.0 if now - caught_up > _BEHIND_S else _SHARE
                self._breathe(min(share * (now - begun), _LONGEST_BREATH_S) if busy else _POLL_S)
            except _InterruptedError:
                continue
            except Exception as problem:
                self._failed(problem)
                self._rest(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _send(self, limit: int) -> int:
        """Send the beginning of the queue; events leave it when they have arrived. Gives their number."""
        events = [self._queue[i] for i in range(min(len(self._queue), limit))]
        if events:
            refused = self.rejected
            self._apply(events)
            for _ in events:
                self._queue.popleft()
            if self.rejected > refused:
                self.doubt()
        return len(events)

    def _repair(self) -> bool:
        """The repair that is asked for, or due in doubt; whether there was one."""
        job, begun = self._job, time.monotonic()
        if job is not None:
            job.result = self._compared(lambda: job.work(self._apply_for(job)))
            self._job = None if self._job is job else self._job
            job.done.set()
        elif self._when_idle is not None and self.in_doubt and not self._hurry.is_set() and begun >= self._next_repair:
            work = self._when_idle
            try:
                self._compared(lambda: work(self._apply_for(None)))
            except Exception:
                self._next_repair = self._rested_from(begun, least=0.0, most=_LONGEST_PAUSE_S)
                raise
            self._next_repair = self._rested_from(begun, least=_REPAIR_EVERY_S)
        else:
            return False
        return True

    def _rested_from(self, begun: float, least: float, most: float = math.inf) -> float:
        """When a repair may begin again after one that began at `begun`."""
        now = time.monotonic()
        return now + min(max(least, _SHARE * (now - begun)), most)

    def _compared(self, work: Callable[[], Result]) -> Result:
        begun = time.monotonic()
        result = work()
        self._settled_at = begun
        return result

    def _apply_for(self, job: _Job | None) -> Apply:
        """`_apply` that ends where nobody waits for this repair any more."""

        def apply(events: Sequence[Event]) -> None:
            if self._closed.is_set() or self._job is not job or (job is None and self._hurry.is_set()):
                raise _InterruptedError
            self._apply(events)

        return apply

    def _apply(self, events: Sequence[Event]) -> None:
        if self._runs is None:
            self._runs = Runs(self._uri)
        try:
            self._runs.apply(events)
        except RunGoneError:
            # its successor lacks what came before
            self.doubt()
            raise
        self._failing_since = None

    def _failed(self, problem: Exception) -> None:
        # a store that was away may come back as it was yesterday, or as another one
        self.doubt()
        self._failing_since = self._failing_since or time.monotonic()
        line = scrub(problem, self._uri)
        if line != self.last_error:
            _log.warning("tracking is waiting: %s", line)
        self.last_error = line

    def _breathe(self, seconds: float) -> None:
        """Let more gather for fewer and larger requests; not while somebody waits for the rest to arrive."""
        end = time.monotonic() + seconds
        while not self._closed.is_set() and time.monotonic() < end:
            if self._hurry.is_set() and (self._queue or self._job):
                return
            self._closed.wait(min(_POLL_S, seconds))

    def _rest(self, seconds: float) -> None:
        """Pause between attempts; half a second at most while somebody waits for the rest to arrive."""
        end = time.monotonic() + seconds
        rested = 0.0
        while not self._closed.is_set() and time.monotonic() < end and not (self._hurry.is_set() and rested >= 0.5):
            self._closed.wait(0.1)
            rested += 0.1
