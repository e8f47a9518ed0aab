"""The references of a search, run before its trials: Ray tasks with a trial's resources, each told to the record."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sctune.search.cluster.connection import Resources
from sctune.search.plan.references import Limit
from sctune.search.run.remote import RemoteTasks
from sctune.search.run.slots import FREE, Slots
from sctune.search.study.references import (
    FAILURE,
    REPORT,
    TIME,
    Reference,
    read_references,
    reference_fields,
    stored_name,
)
from sctune.search.study.study import Study
from sctune.trial.building import TrialSpec
from sctune.trial.reference import REPORTED, run_reference
from sctune.trial.remote import FAILED, LOG

_log = logging.getLogger(__name__)


@dataclass
class ReferenceRuns:
    """Runs what a study lacks of its references. A failure is told and leaves the search unharmed.

    on_end: told each one that is run on all tasks, or has failed, after the record. stopping: whether the launch ends.
    limit: of all together. slots: as many at a time as of trials.
    """

    study: Study
    spec: TrialSpec
    resources: Resources
    on_end: Callable[[Reference], None]
    stopping: Callable[[], bool]
    limit: Limit
    slots: Slots = FREE
    _stored: dict[str, Any] = field(default_factory=dict, init=False)

    def run(self) -> None:
        """Come back when all have been tried, the time is spent or the launch is to end."""
        end = time.monotonic() + self.limit.seconds
        self._stored = self.study.record.load_references()
        waiting = deque(
            (one.name, key) for one in read_references(self.study.manifest, self._stored) for key in one.missing
        )
        failed: set[str] = set()
        tasks = RemoteTasks[tuple[str, str]](
            self.resources, lambda running: self.slots.room(running, running, len(waiting))
        )
        try:
            while (waiting or tasks.keys) and not self.stopping():
                if time.monotonic() > end:
                    return self._out_of_time({name for name, _ in [*waiting, *tasks.keys]} - failed)
                while waiting and tasks.room:
                    name, key = waiting.popleft()
                    if name not in failed:
                        tasks.start((name, key), run_reference, self.spec.model_dump(), self._fields(name), key)
                failed |= {name for (name, key), found in tasks.take() if self._take(name, key, found)}
        finally:
            tasks.cancel()
        return None

    def _fields(self, name: str) -> dict[str, Any]:
        manifest = self.study.manifest
        return reference_fields(manifest.trial_config(), name, manifest.profile)

    def _take(self, name: str, key: str, found: dict[str, Any]) -> bool:
        """Write down what has ended; whether it failed."""
        for line in found.get(LOG, ()):
            _log.info("reference %s, task %s: %s", name, key, line)
        if FAILED in found:
            self._tell(name, key, {FAILURE: found[FAILED]})
        elif REPORTED in found:
            self._tell(name, key, {REPORT: found[REPORTED]})
        return FAILED in found

    def _tell(self, name: str, key: str, content: dict[str, Any]) -> None:
        stored = {**content, TIME: int(time.time() * 1000)}
        self._stored[stored_name(name, key)] = stored
        self.study.record.tell_reference(stored_name(name, key), stored)
        (one,) = (one for one in read_references(self.study.manifest, self._stored) if one.name == name)
        if one.report is not None or FAILURE in content:
            self.on_end(one)

    def _out_of_time(self, names: set[str]) -> None:
        message = f"it was not done within {self.limit.seconds:.0f} s, which is {self.limit.what}"
        for one in read_references(self.study.manifest, self._stored):
            if one.name in names:
                self._tell(one.name, one.missing[0], {FAILURE: {"kind": "TimeLimit", "message": message}})
