"""What becomes of a trial that met trouble: it fails, starts again, or waits for a larger share of a node.

Deterministic errors fail at once. What a node lacks (images, weights, room) costs that node, which is left out, and
the trial is tried on another. A lost worker costs a retry, a lost node none. Out of memory parks the trial
until it can have more. A storage that is full or away is waited for. Pure decisions; the searcher carries them out.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sctune.search.cluster.resources import Share

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
class Verdict:
    """One of: failure (tell FAIL), wait_s (start again after so many seconds), share (park until that is free).

    left_out: a line about a node that gets no trials any more.
    reason: for people. storage: it was the checkpoints' storage; nothing is started before that takes files again.
    abort: the launch must end, and why.
    """

    reason: str
    failure: Mapping[str, str] | None = None
    wait_s: float = 0.0
    share: Share | None = None
    storage: bool = False
    left_out: str | None = None
    abort: str | None = None


class Faults:
    """Decides about troubled trials of one launch.

    base: the share that every trial starts with; largest: the largest node. node_is_alive: id -> whether it is.
    nodes: ids of the nodes that can hold such a share. left_out: ids of those that get no trials, which grows.
    """

    def __init__(
        self,
        base: Share,
        largest: Share,
        node_is_alive: Callable[[str], bool],
        nodes: Callable[[Share], Collection[str]] = lambda _share: (),
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

    def told(self, number: int, failure: Mapping[str, str], share: Share) -> Verdict:
        """A trial told its own failure {"kind", "message", "traceback"} while it had `share`."""
        if failure["kind"] in (DISK_FULL, STORAGE_AWAY):
            return self._storage_away(number, failure)
        if failure["kind"] in NODE_ERRORS:
            return self._lacking(failure, share)
        if failure["kind"] != OUT_OF_MEMORY:
            return Verdict(f"failed: {failure['kind']}", failure=failure)
        return self._more_memory(failure, share)

    def lost(self, number: int, error: str, node: str | None, share: Share) -> Verdict:
        """A trial's worker ended with Ray's message `error`; node: where it ran, None where that is not known."""
        if _NODE.search(error) or (node is not None and not self._node_is_alive(node)):
            self._node_losses[number] += 1
            return Verdict("its node was lost", wait_s=_pause(self._node_losses[number]))
        line = _first_line(error)
        if _MEMORY.search(error):
            return self._more_memory({"kind": OUT_OF_MEMORY, "message": line, "traceback": error}, share)
        self._losses[number] += 1
        if self._losses[number] > MAX_WORKER_LOSSES:
            message = f"its worker was lost {self._losses[number]} times, the last time: {line}"
            return Verdict("failed: lost", failure={"kind": "lost", "message": message, "traceback": error})
        return Verdict(f"its worker was lost ({line})", wait_s=_pause(self._losses[number]))

    def _lacking(self, failure: Mapping[str, str], share: Share) -> Verdict:
        """The node lacks what any trial needs; failure["node"]: its id, failure["where"]: host, process, device."""
        node, host = failure.get("node", ""), failure.get("where", "").partition(",")[0]
        message = f"node {host}: {failure['message']}" if host else failure["message"]
        if not node or not set(self._nodes(share)) - self.left_out - {node}:
            alone = not self.left_out - {node}
            return Verdict("its node lacks something", abort=message if alone else f"no node is left; {message}")
        line = None if node in self.left_out else f"{message}; it is left out until the next launch"
        self.left_out.add(node)
        return Verdict(f"its node cannot run it ({message}); again on another one", left_out=line)

    def _storage_away(self, number: int, failure: Mapping[str, str]) -> Verdict:
        self._away[number] += 1
        why = f"its checkpoints were not taken ({failure['kind']})"
        if self._away[number] < MAX_STORAGE_FAILURES:
            return Verdict(why, wait_s=RETRY_PAUSES_S[1], storage=True)
        # this machine could write each time before it was started again
        times, where = self._away[number], failure.get("where", "its node")
        abort = (
            f"trial {number} could not keep its checkpoints {times} times, the last time on {where}: "
            f"{failure['message']}; look at the storage there"
        )
        return Verdict(why, abort=abort)

    def _more_memory(self, failure: Mapping[str, str], share: Share) -> Verdict:
        more = share.larger(self._largest)
        if more is not None:
            return Verdict(f"out of memory with {_text(share)}; again with {_text(more)}", share=more)
        message = f"with {_text(share)}, the most that one trial can have: {failure['message']}"
        return Verdict(f"failed: {OUT_OF_MEMORY}", failure={**failure, "message": message})


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


def common_cause(failures: Iterable[Mapping[str, Any]]) -> str:
    """The most frequent failure in one line; numbers that differ (addresses, sizes) do not make it another one."""
    rows = [(str(row.get("kind", "")), str(row.get("message", ""))) for row in failures]
    if not rows:
        return "no cause is known"
    kinds = Counter((kind, re.sub(r"\d+", "#", message)) for kind, message in rows)
    (kind, pattern), count = kinds.most_common(1)[0]
    first = next(m for k, m in rows if (k, re.sub(r"\d+", "#", m)) == (kind, pattern))
    return f"{kind}: {first[:300]} ({count} of {len(rows)})"


def _pause(count: int) -> float:
    return RETRY_PAUSES_S[min(count, len(RETRY_PAUSES_S)) - 1]


def _text(share: Share) -> str:
    return f"{share.gpus:g} GPU" if share.gpus else f"{share.cpus:g} CPUs"


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Ray's first line says only that something ended; the reason is the last one
    return (lines[-1] if lines else "no reason given")[:300]
