"""Whether this worker's node is being taken away: a spot notice, a pod that is deleted, a machine that is turned off.

Whoever takes it tells Ray that the node drains; Ray places nothing there any more, and tells trials nothing. A thread
of the worker asks, so that an epoch never waits for the answer.
"""

from __future__ import annotations

import threading

import ray

from sctune.trial.ray_private import draining_nodes

POLL_S = 3.0


class LeavingFlag:
    """Whether the node drains; calling it costs nothing. node: its id; "": never."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._raised = threading.Event()
        if node and ray.is_initialized():
            threading.Thread(target=self._watch, daemon=True, name="sctune-leaving").start()

    def __call__(self) -> bool:
        return self._raised.is_set()

    def _watch(self) -> None:
        while not self._raised.wait(POLL_S):
            try:
                if self._node in draining_nodes():
                    self._raised.set()
            except Exception:  # the cluster is away: Ray will end this worker, or can be asked again
                pass
