"""Leaving between two chunks when a signal asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sctune.errors import SctuneError


class StoppedPredictionError(SctuneError):
    """A prediction that was asked to end; what is done stays, and the message says how to go on."""

    exit_code = 3


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set while the block runs; a second signal ends the process at once.

    Outside the main thread, where Python delivers no signals, it is never set.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def stop(_number: int, _frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
