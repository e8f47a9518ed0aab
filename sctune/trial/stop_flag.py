"""The flag that a stopped driver raises and that trials look at between iterations.

It lies in the key-value store of the Ray cluster, which every node reaches; a worker asks for it in a thread of its
own, so that an iteration never waits for it.
"""

from __future__ import annotations

import threading

import ray

from sctune.trial.ray_private import key_value, set_key_value

POLL_S = 0.5


class StopFlag:
    """Whether the driver of this launch wants its trials to end; calling it costs nothing. key: the launch's own."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._raised = threading.Event()
        if key and ray.is_initialized():
            threading.Thread(target=self._watch, daemon=True, name="sctune-stop").start()

    def __call__(self) -> bool:
        return self._raised.is_set()

    def _watch(self) -> None:
        while not self._raised.is_set():
            try:
                if key_value(self._key) is not None:
                    self._raised.set()
            except Exception:  # the cluster is away: Ray will end this worker, or the flag can be asked for again
                pass
            self._raised.wait(POLL_S)


def raise_flag(key: str) -> None:
    """Ask all trials of a launch to end at their next iteration."""
    set_key_value(key, b"1")
