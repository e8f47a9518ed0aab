"""Nodes on which trials fail that get on elsewhere: a broken card, a worn disk, a library that does not load.

One that fails fast takes trial after trial, since it is the first that is free again. A trial that failed there is
tried once on another node; where several got on by that, it was the node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from sctune.report import Origin

MACHINE_ERRORS = ("RuntimeError", "AcceleratorError", "SystemError", "ImportError", "ModuleNotFoundError")
"""Kinds of failure that a machine may cause as well as a configuration. Others are the trial's own (NaN, its data)."""

STRIKES = 2
"""Trials that failed on a node and got on elsewhere, after which it gets no more: one may have been chance."""


class Suspects:
    """Of one launch. others: a node's id -> whether there are others for its trials, but for those left out."""

    def __init__(self, others: Callable[[str], bool]) -> None:
        self._others = others
        self._failed: dict[int, dict[str, str]] = {}
        self._strikes: dict[str, dict[int, str]] = {}
        self._hosts: dict[str, str] = {}

    def worth_another(self, number: int, node: str, why: str, host: str = "") -> bool:
        """Whether a trial that failed on `node` should be tried elsewhere: once, where there is another node."""
        return self.failed(number, node, why, host) and len(self._failed[number]) == 1

    def failed(self, number: int, node: str, why: str, host: str = "") -> bool:
        """Note it; whether there is another node. node: "" where it is not known; why: one line."""
        if not node or not self._others(node):
            return False
        if host:
            self._hosts[node] = host
        self._failed.setdefault(number, {})[node] = why
        return True

    def avoided(self, number: int, nodes: Callable[[], Collection[str]]) -> set[str]:
        """Of `nodes` those that a trial should not be started on; none where all are."""
        failed = self._failed.get(number)
        if not failed:
            return set()
        there = set(nodes())
        return set() if there <= failed.keys() else there & failed.keys()

    def got_on(self, number: int, origin: Origin) -> tuple[str, str] | None:
        """A trial told an epoch that it had not reached before: a node to leave out by that, and a line about it."""
        if origin.node and origin.where:
            self._hosts[origin.node] = origin.where.partition(",")[0]
        failed = self._failed.get(number)
        if not failed or not origin.node or origin.node in failed:
            return None
        found = None
        for node, why in self._failed.pop(number).items():
            strikes = self._strikes.setdefault(node, {})
            strikes[number] = why
            if len(strikes) >= STRIKES and self._others(node):
                found = node, self._line(node)
        return found

    def _line(self, node: str) -> str:
        numbers, why = sorted(self._strikes[node]), list(self._strikes[node].values())[-1]
        listed = " and ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))
        name = self._hosts.get(node, node[:8])
        reason = f"trials {listed} failed there and got on elsewhere ({why[:200]})"
        return f"node {name}: {reason}; it is left out until the next launch"
