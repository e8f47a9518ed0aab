"""The references of a search, run before its trials: Ray tasks with a trial's resources, each told to the record."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from sctune.search.cluster.connection import Resources
from sctune.search.study.references import (
    FAILURE,
    REPORT,
    TIME,
    TIME_SHARE,
    Reference,
    read_references,
    reference_fields,
    stored_name,
)
from sctune.search.study.study import Study
from sctune.trial.building import TrialSpec
from sctune.trial.reference import FAILED, REPORTED, run_reference

POLL_S = 0.2

_log = logging.getLogger(__name__)


@dataclass
class ReferenceRuns:
    """Runs what a study lacks of its references. A failure is told and leaves the search unharmed.

    on_end: told each one that is run on all tasks, or has failed, after the record. stopping: whether the launch ends.
    limit_s: seconds that they may take together, None: as long as they need.
    """

    study: Study
    spec: TrialSpec
    resources: Resources
    on_end: Callable[[Reference], None]
    stopping: Callable[[], bool]
    limit_s: float | None
    _running: dict[Any, tuple[str, str]] = field(default_factory=dict, init=False)
    _stored: dict[str, Any] = field(default_factory=dict, init=False)

    def run(self) -> None:
        """Come back when all have been tried, the time is spent or the launch is to end."""
        end = None if self.limit_s is None else time.monotonic() + self.limit_s
        self._stored = self.study.record.load_references()
        waiting = deque(
            (one.name, key) for one in read_references(self.study.manifest, self._stored) for key in one.missing
        )
        failed: set[str] = set()
        try:
            while (waiting or self._running) and not self.stopping():
                if end is not None and time.monotonic() > end:
                    return self._out_of_time({name for name, _ in [*waiting, *self._running.values()]} - failed)
                while waiting and len(self._running) < self.resources.concurrent:
                    name, key = waiting.popleft()
                    if name not in failed:
                        self._start(name, key)
                failed |= self._take()
        finally:
            for task in self._running:
                ray.cancel(task, force=True)
        return None

    def _start(self, name: str, key: str) -> None:
        manifest = self.study.manifest
        fields = reference_fields(manifest.trial_config(), name, manifest.profile)
        lacking = self.resources.left_out
        where = {"label_selector": {"ray.io/node-id": f"!in({','.join(sorted(lacking))})"}} if lacking else {}
        task = ray.remote(run_reference).options(
            num_cpus=self.resources.cpus, num_gpus=self.resources.gpus, max_retries=1, **where
        )
        self._running[task.remote(self.spec.model_dump(), fields, key)] = (name, key)

    def _take(self) -> set[str]:
        """Write down what has ended; gives the names of those that failed."""
        if not self._running:
            return set()
        failed = set()
        ended, _ = ray.wait(list(self._running), timeout=POLL_S)
        for task in ended:
            name, key = self._running.pop(task)
            found = _result(task)
            for line in found.get("log", ()):
                _log.info("reference %s, task %s: %s", name, key, line)
            if FAILED in found:
                failed.add(name)
                self._tell(name, key, {FAILURE: found[FAILED]})
            elif REPORTED in found:
                self._tell(name, key, {REPORT: found[REPORTED]})
        return failed

    def _tell(self, name: str, key: str, content: dict[str, Any]) -> None:
        stored = {**content, TIME: int(time.time() * 1000)}
        self._stored[stored_name(name, key)] = stored
        self.study.record.tell_reference(stored_name(name, key), stored)
        (one,) = (one for one in read_references(self.study.manifest, self._stored) if one.name == name)
        if one.report is not None or FAILURE in content:
            self.on_end(one)

    def _out_of_time(self, names: set[str]) -> None:
        message = f"it was not done within {self.limit_s:.0f} s, which is {100 * TIME_SHARE:.0f} % of the time budget"
        for one in read_references(self.study.manifest, self._stored):
            if one.name in names:
                self._tell(one.name, one.missing[0], {FAILURE: {"kind": "TimeBudget", "message": message}})


def _result(task: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = ray.get(task)
        return found
    except RayError as problem:
        # its worker was lost twice, or could not begin
        line = next(iter(str(problem).strip().splitlines()), "its worker was lost")
        return {FAILED: {"kind": type(problem).__name__, "message": line[:500]}}
