"""How a launch is stopped from outside: signals, and the end of the time budget."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sctune.search.run.controller import End, EndReason, TrialController
from sctune.trial.stop_flag import raise_flag


class LeaveNow(BaseException):
    """A signal while the last pictures are made; no error, so that nobody on the way takes it for one."""


@dataclass
class Stop:
    """finishing: all trials are over; a signal then breaks off what is being made for people. signalled: one came."""

    finishing: bool = False
    signalled: bool = False


@contextmanager
def stop_signals(controller: TrialController, stop_key: str, budget_s: float | None) -> Iterator[Stop]:
    """SIGINT, SIGTERM and the end of the time budget stop the launch cleanly; a second signal ends it at once.

    Tune ends its loop on SIGUSR1 (RAY_ENVIRONMENT keeps its hands off SIGINT), so the controller can be told first.
    Must be entered after ray.init, which replaces handlers.
    """

    state = Stop()

    def stop(_number: int, _frame: object) -> None:
        if state.signalled or controller.stopping:
            raise KeyboardInterrupt
        state.signalled = True
        controller.record.hurry(5.0)
        if state.finishing:
            raise LeaveNow
        end_trials(EndReason.STOPPED)

    def out_of_time() -> None:
        # only the trials have a budget
        if not state.finishing and not controller.stopping:
            end_trials(EndReason.OUT_OF_TIME)

    def end_trials(reason: EndReason) -> None:
        controller.finish(End(reason))
        # not here: a handler may run while Ray's client holds a lock
        threading.Thread(target=raise_flag, args=(stop_key,), daemon=True).start()
        os.kill(os.getpid(), signal.SIGUSR1)

    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    # until Tune has its own handler: the controller then ends the launch by starting nothing
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
