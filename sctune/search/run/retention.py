"""Which checkpoints stay: those of unfinished trials, and of the best few full runs of the study."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import Any

from optuna.trial import FrozenTrial

from sctune.errors import StorageError
from sctune.metrics.objective import AUROC, Objective
from sctune.report import EpochReport
from sctune.trial.checkpoint import TrialStore

CLOSE_S = 3.0

_log = logging.getLogger(__name__)


class CheckpointKeeper:
    """An observer of the trials that removes a loser's checkpoints as it loses, in a thread of its own.

    after: calls back once the record holds what it was told: a trial whose end a kill keeps out of the record still
    has its checkpoints. taken: whether another driver has the study by now; nothing is removed then.
    """

    def __init__(
        self,
        storage: str,
        keep_best: int,
        trials: Sequence[FrozenTrial],
        after: Callable[[Callable[[], None]], None] = lambda call: call(),
        taken: Callable[[], bool] = lambda: False,
        objective: Objective = AUROC,
    ) -> None:
        self.storage = storage
        self.keep_best = keep_best
        self._after, self._taken, self._merit = after, taken, objective.merit
        self._removals: set[Future[None]] = set()
        self.kept = [(self._merit(t.value or 0.0), -t.number) for t in trials if t.state.name == "COMPLETE"]
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._trim()

    def on_start(self, number: int, params: dict[str, Any], attempt: int) -> None:
        """A running trial keeps its checkpoints."""

    def on_report(self, number: int, report: EpochReport, time: int) -> None:
        """A running trial keeps its checkpoints."""

    def on_wait(self, number: int, reason: str) -> None:
        """A trial that waits, to be started again or promoted, keeps its checkpoints."""

    def on_end(self, number: int, state: str, value: float | None, info: dict[str, Any]) -> None:
        self._after(lambda: self._ended(number, value if state == "COMPLETE" else None))

    def _ended(self, number: int, value: float | None) -> None:
        if value is None:
            self._remove(number)
            return
        with self._lock:
            self.kept.append((self._merit(value), -number))
        self._trim()

    def drop_worst(self) -> bool:
        """Give up the checkpoints of the worst full run that is kept, and wait until they are gone; keeps one."""
        with self._lock:
            if len(self.kept) <= 1:
                return False
            self.kept.sort(reverse=True)
            worst = -self.kept.pop()[1]
        self._remove(worst).result()
        return True

    def close(self) -> None:
        """Wait until everything to be removed is gone, CLOSE_S seconds at most: the next launch removes the rest."""
        wait(list(self._removals), CLOSE_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _trim(self) -> None:
        with self._lock:
            self.kept.sort(reverse=True)
            while len(self.kept) > self.keep_best:
                self._remove(-self.kept.pop()[1])

    def _remove(self, number: int) -> Future[None]:
        try:
            removal = self._pool.submit(self._clear, number)
        except RuntimeError:  # closed: the next launch removes it
            removal = Future()
            removal.set_result(None)
            return removal
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        return removal

    def _clear(self, number: int) -> None:
        if self._taken():
            return
        try:
            TrialStore(self.storage, number).clear()
        except (OSError, StorageError) as problem:
            _log.warning("the checkpoints of trial %d could not be removed: %s", number, problem)
