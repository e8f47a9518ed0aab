"""Process groups of commands that the tests start."""

from __future__ import annotations

import os
import signal
import time


def end_group(group: int) -> None:
    """Kill what is left of a process group (Ray's own processes stay in it) and wait until it is gone."""
    for _ in range(50):
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return
        time.sleep(0.1)
