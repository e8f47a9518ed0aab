"""How a launch is stopped from outside: signals, and the end of the time budget."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sctune.search.run.searcher import StudySearcher
from sctune.trial.stop_flag import raise_flag


class LeaveNow(BaseException):
    """A signal while the last pictures are made; no error, so that nobody on the way takes it for one."""


@dataclass
class Stop:
    """finishing: all trials are over; a signal then breaks off what is being made for people.

    out_of_time: it was the time budget that ended the launch.
    """

    finishing: bool = False
    out_of_time: bool = False


@contextmanager
def stop_signals(searcher: StudySearcher, stop_key: str, budget_s: float | None) -> Iterator[Stop]:
    """SIGINT, SIGTERM and the end of the time budget stop the launch cleanly; a second signal ends it at once.

    Tune ends its loop on SIGUSR1 (RAY_ENVIRONMENT keeps its hands off SIGINT), so the searcher can be told first.
    Must be entered after ray.init, which replaces handlers.
    """

    state = Stop()

    def stop(_number: int, _frame: object) -> None:
        if searcher.stopping:
            raise KeyboardInterrupt
        searcher.record.hurry(5.0)
        if state.finishing:
            searcher.stopping = True
            raise LeaveNow
        end_trials()

    def out_of_time() -> None:
        # only the trials have a budget
        if not state.finishing and not searcher.stopping:
            state.out_of_time = True
            end_trials()

    def end_trials() -> None:
        searcher.stopping = True
        # not here: a handler may run while Ray's client holds a lock
        threading.Thread(target=raise_flag, args=(stop_key,), daemon=True).start()
        os.kill(os.getpid(), signal.SIGUSR1)

    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    # until Tune has its own handler: the searcher then ends the launch by suggesting nothing
    # and for good, since a late timer must not end the process
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    timer = threading.Timer(budget_s, out_of_time) if budget_s is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield state
    finally:
        if timer is not None:
            timer.cancel()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        for number, handler in before.items():
            signal.signal(number, handler)
