"""Ray tasks with a trial's resources, as many at a time as there is room for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

from sctune.search.cluster.connection import Resources, nodes_for
from sctune.search.run.faults import NODE_ERRORS
from sctune.trial.remote import FAILED, NODE

POLL_S = 0.2
_log = logging.getLogger(__name__)

Key = TypeVar("Key")


@dataclass(frozen=True)
class _Task(Generic[Key]):
    key: Key
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


class RemoteTasks(Generic[Key]):
    """Tasks in flight, each under a key.

    A worker that is lost is tried once more. Where a node lacks what a task needs, it gets no more of them, and the
    task is tried on another one, while there is one.
    """

    def __init__(self, resources: Resources, may_start: Callable[[int], bool] = lambda _running: True) -> None:
        """may_start: number of those that run -> whether there may be one more, besides the resources' own limit."""
        self.resources, self._may_start = resources, may_start
        self._lacking = set(resources.left_out)
        self._running: dict[Any, _Task[Key]] = {}

    @property
    def keys(self) -> list[Key]:
        """Of the tasks that run."""
        return [task.key for task in self._running.values()]

    @property
    def room(self) -> bool:
        """Whether another one may be started."""
        return len(self._running) < self.resources.concurrent and self._may_start(len(self._running))

    def start(self, key: Key, function: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """function: raises nothing (`sctune.trial.remote.answered`)."""
        self._start(_Task(key, function, arguments))

    def _start(self, task: _Task[Key]) -> None:
        lacking = sorted(self._lacking)
        where = {"label_selector": {"ray.io/node-id": f"!in({','.join(lacking)})"}} if lacking else {}
        remote = ray.remote(task.function).options(
            num_cpus=self.resources.cpus, num_gpus=self.resources.gpus, max_retries=1, **where
        )
        self._running[remote.remote(*task.arguments)] = task

    def take(self) -> list[tuple[Key, dict[str, Any]]]:
        """Keys and answers of those that have ended, after a short wait for the first."""
        if not self._running:
            return []
        ended, _ = ray.wait(list(self._running), timeout=POLL_S)
        found = []
        for reference in ended:
            task, answer = self._running.pop(reference), _answer(reference)
            if self._goes_elsewhere(answer):
                self._start(task)
            else:
                found.append((task.key, answer))
        return found

    def _goes_elsewhere(self, answer: dict[str, Any]) -> bool:
        node = answer.get(NODE)
        if not node or answer[FAILED]["kind"] not in NODE_ERRORS:
            return False
        self._lacking.add(node)
        if not nodes_for(self.resources.cpus, self.resources.gpus) - self._lacking:
            return False
        _log.warning("a node lacks what a task needs, which is tried on another one: %s", answer[FAILED]["message"])
        return True

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
