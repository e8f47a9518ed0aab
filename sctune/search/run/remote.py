"""Ray tasks with a trial's resources, as many at a time as there is room for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

from sctune.search.cluster.connection import Resources
from sctune.trial.remote import FAILED

POLL_S = 0.2

Key = TypeVar("Key")


class RemoteTasks(Generic[Key]):
    """Tasks in flight, each under a key. A worker that is lost is tried once more, on the nodes that lack nothing."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self._running: dict[Any, Key] = {}

    @property
    def keys(self) -> list[Key]:
        """Of the tasks that run."""
        return list(self._running.values())

    @property
    def room(self) -> bool:
        """Whether another one may be started."""
        return len(self._running) < self.resources.concurrent

    def start(self, key: Key, function: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """function: raises nothing (`sctune.trial.remote.answered`)."""
        lacking = self.resources.left_out
        where = {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(lacking))})"}} if lacking else {}
        task = ray.remote(function).options(
            num_cpus=self.resources.cpus, num_gpus=self.resources.gpus, max_retries=1, **where
        )
        self._running[task.remote(*arguments)] = key

    def take(self) -> list[tuple[Key, dict[str, Any]]]:
        """Keys and answers of those that have ended, after a short wait for the first."""
        if not self._running:
            return []
        ended, _ = ray.wait(list(self._running), timeout=POLL_S)
        return [(self._running.pop(task), _answer(task)) for task in ended]

    def cancel(self) -> None:
        """End all that run, at once."""
        for task in self._running:
            ray.cancel(task, force=True)
        self._running.clear()


def _answer(task: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = ray.get(task)
        return found
    except RayError as problem:
        # its worker was lost twice, or could not begin
        line = next(iter(str(problem).strip().splitlines()), "its worker was lost")
        return {FAILED: {"kind": type(problem).__name__, "message": line[:500]}}
