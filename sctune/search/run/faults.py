"""What becomes of a trial that met trouble: it fails, starts again, or waits for more of a node.

Deterministic errors fail at once. What a node lacks (images, weights, room) costs that node, which is left out, and
the trial is tried on another. So is one with an error that the machine may have caused, once: a node that fails trials
which get on elsewhere is left out too. A lost worker costs a retry, a lost node none. Out of memory parks the trial
until it can have more. A storage that is full or away is waited for. Pure decisions; the controller carries them out.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from sctune.errors import NodeLeavingError
from sctune.report import Origin, TrialFailure
from sctune.search.cluster.resources import TrialResources
from sctune.search.run.suspects import MACHINE_ERRORS, Suspects

OUT_OF_MEMORY = "out of memory"
DISK_FULL, STORAGE_AWAY = "disk full", "storage away"
"""Kinds of failure that a trial tells, and that are no failure of its configuration."""

NODE_ERRORS = ("PlaceError", "ClusterError", "WeightsError", "ChangedDataError")
"""Kinds that every other trial would meet on that node: it is left out. Without another node the launch ends."""

MAX_WORKER_LOSSES = 3
"""Times that a trial may take its worker down with it; lost nodes are not counted."""

MAX_STORAGE_FAILURES = 5
"""Times that the storage may fail one trial while it takes the driver's own files."""

RETRY_PAUSES_S = (1.0, 5.0, 20.0)
"""Before the first, second and every later start of a trial whose worker was lost."""

FIRST_FAILURES = 4
"""Trials that fail one after the other before the first one has reported an epoch: then the launch ends."""

_NODE = re.compile(
    r"\bnode\b[^.]*\b(died|dead|terminated|removed|drained|shut ?down)|missing too many heartbeats", re.I
)
_MEMORY = re.compile(r"running low on memory|memory pressure|OutOfMemoryError|out of memory", re.I)


@dataclass(frozen=True)
class FailureAction:
    """One of: failure (tell FAIL), wait_s (start again after so many seconds), resources (park until they are free).

    left_out: a line about a node that gets no trials any more.
    reason: for people. storage: it was the checkpoints' storage; nothing is started before that takes files again.
    abort: the launch must end, and why.
    """

    reason: str
    failure: TrialFailure | None = None
    wait_s: float = 0.0
    resources: TrialResources | None = None
    storage: bool = False
    left_out: str | None = None
    abort: str | None = None


class Faults:
    """Decides about troubled trials of one launch.

    base: what every trial starts with; largest: the largest node. node_is_alive: id -> whether it is.
    nodes: ids of the nodes that can hold so much. left_out: ids of those that get no trials, which grows.
    """

    def __init__(
        self,
        base: TrialResources,
        largest: TrialResources,
        node_is_alive: Callable[[str], bool],
        nodes: Callable[[TrialResources], Collection[str]] = lambda _resources: (),
        left_out: Iterable[str] = (),
    ) -> None:
        self.base = base
        self.left_out = set(left_out)
        self._nodes = nodes
        self._largest = largest
        self._node_is_alive = node_is_alive
        self._losses: Counter[int] = Counter()
        self._node_losses: Counter[int] = Counter()
        self._away: Counter[int] = Counter()
        self._suspects = Suspects(lambda node: self._others(node, base))

    def avoid(self, number: int, resources: TrialResources) -> tuple[str, ...]:
        """Ids of the nodes that a trial must not be started on, sorted."""
        failed = self._suspects.avoided(number, lambda: set(self._nodes(resources)) - self.left_out)
        return tuple(sorted(self.left_out | failed))

    def got_on(self, number: int, origin: Origin) -> str | None:
        """A trial told an epoch that it had not reached before; a line about a node that is left out by that."""
        found = self._suspects.got_on(number, origin)
        if found is None or found[0] in self.left_out:
            return None
        self.left_out.add(found[0])
        return found[1]

    def _others(self, node: str, resources: TrialResources) -> bool:
        """Whether another node can have trials of this share."""
        return bool(set(self._nodes(resources)) - self.left_out - {node})

    def told(self, number: int, failure: TrialFailure, resources: TrialResources) -> FailureAction:
        """A trial told its own failure while it had `resources`."""
        if failure.kind in (DISK_FULL, STORAGE_AWAY):
            return self._storage_away(number, failure)
        if failure.kind in NODE_ERRORS:
            return self._lacking(failure, resources)
        if failure.kind == OUT_OF_MEMORY:
            return self._more_memory(failure, resources)
        origin, message = failure.origin, f"{failure.kind}: {failure.message}"
        host = origin.where.partition(",")[0]
        if failure.kind in MACHINE_ERRORS and self._suspects.worth_another(number, origin.node, message, host):
            return FailureAction(f"failed on {host or 'its node'} ({message}); once more on another one")
        return FailureAction(f"failed: {failure.kind}", failure=failure)

    def lost(self, number: int, error: str, node: str | None, resources: TrialResources) -> FailureAction:
        """A trial's worker ended with Ray's message `error`; node: where it ran, None where that is not known."""
        if _NODE.search(error) or (node is not None and not self._node_is_alive(node)):
            self._node_losses[number] += 1
            why = "its node is being taken away" if NodeLeavingError.__name__ in error else "its node was lost"
            return FailureAction(why, wait_s=_pause(self._node_losses[number]))
        line = _first_line(error)
        if _MEMORY.search(error):
            return self._more_memory(TrialFailure(OUT_OF_MEMORY, line, error), resources)
        self._suspects.failed(number, node or "", line)
        self._losses[number] += 1
        if self._losses[number] > MAX_WORKER_LOSSES:
            message = f"its worker was lost {self._losses[number]} times, the last time: {line}"
            return FailureAction("failed: lost", failure=TrialFailure("lost", message, error))
        return FailureAction(f"its worker was lost ({line})", wait_s=_pause(self._losses[number]))

    def _lacking(self, failure: TrialFailure, resources: TrialResources) -> FailureAction:
        """The node lacks what any trial needs."""
        node, host = failure.origin.node, failure.origin.where.partition(",")[0]
        message = f"node {host}: {failure.message}" if host else failure.message
        if not node or not self._others(node, resources):
            alone = not self.left_out - {node}
            return FailureAction("its node lacks something", abort=message if alone else f"no node is left; {message}")
        line = None if node in self.left_out else f"{message}; it is left out until the next launch"
        self.left_out.add(node)
        return FailureAction(f"its node cannot run it ({message}); again on another one", left_out=line)

    def _storage_away(self, number: int, failure: TrialFailure) -> FailureAction:
        self._away[number] += 1
        why = f"its checkpoints were not taken ({failure.kind})"
        if self._away[number] < MAX_STORAGE_FAILURES:
            return FailureAction(why, wait_s=RETRY_PAUSES_S[1], storage=True)
        # this machine could write each time before it was started again
        times, where = self._away[number], failure.origin.where or "its node"
        abort = (
            f"trial {number} could not keep its checkpoints {times} times, the last time on {where}: "
            f"{failure.message}; look at the storage there"
        )
        return FailureAction(why, abort=abort)

    def _more_memory(self, failure: TrialFailure, resources: TrialResources) -> FailureAction:
        more = resources.larger(self._largest)
        if more is not None:
            return FailureAction(f"out of memory with {_text(resources)}; again with {_text(more)}", resources=more)
        message = f"with {_text(resources)}, the most that one trial can have: {failure.message}"
        return FailureAction(f"failed: {OUT_OF_MEMORY}", failure=replace(failure, message=message))


class WaitingTrials:
    """Trials to be started again: the unfinished first, the lost after a pause, the parked when nothing else is left.

    clock: seconds, monotonic.
    """

    def __init__(self, unfinished: Iterable[int], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ready = deque(unfinished)
        self._delayed: dict[int, float] = {}
        self._parked: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._ready) + len(self._delayed) + len(self._parked)

    def ready(self, number: int) -> None:
        self._ready.append(number)

    def delay(self, number: int, seconds: float) -> None:
        self._delayed[number] = self._clock() + seconds

    def park(self, number: int) -> None:
        self._parked.append(number)

    def next_ready(self) -> int | None:
        """Takes out the next trial that may start now, parked ones apart."""
        now = self._clock()
        for number, moment in list(self._delayed.items()):
            if moment <= now:
                del self._delayed[number]
                self._ready.append(number)
        return self._ready.popleft() if self._ready else None

    def next_parked(self) -> int | None:
        return self._parked.popleft() if self._parked else None


def common_cause(failures: Iterable[TrialFailure]) -> str:
    """The most frequent failure in one line; numbers that differ (addresses, sizes) do not make it another one."""
    rows = [(failure.kind, failure.message) for failure in failures]
    if not rows:
        return "no cause is known"
    kinds = Counter((kind, re.sub(r"\d+", "#", message)) for kind, message in rows)
    (kind, pattern), count = kinds.most_common(1)[0]
    first = next(m for k, m in rows if (k, re.sub(r"\d+", "#", m)) == (kind, pattern))
    return f"{kind}: {first[:300]} ({count} of {len(rows)})"


def _pause(count: int) -> float:
    return RETRY_PAUSES_S[min(count, len(RETRY_PAUSES_S)) - 1]


def _text(resources: TrialResources) -> str:
    return f"{resources.gpus:g} GPU" if resources.gpus else f"{resources.cpus:g} CPUs"


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Ray's first line says only that something ended; the reason is the last one
    return (lines[-1] if lines else "no reason given")[:300]
