"""A machine that leaves the cluster: its nodes are drained, so that their trials end at an epoch and go on elsewhere.

Ray places nothing on a node that drains; its trials see it (sctune/trial/leaving.py), keep their last epoch and end. A
node with nothing left on it ends by itself.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection

import psutil

from sctune.errors import ClusterError
from sctune.search.cluster.connection import CONNECT_S, check_answers, prepare_environment, use_token
from sctune.trial.ray_private import Head

POLL_S = 2.0


class OwnNodes:
    """The Ray nodes of this machine but for a head, in the cluster whose head is at `address` (host:port).

    Raises ClusterError where nothing answers there, another token is asked for, or this machine has no such node.
    """

    def __init__(self, address: str, wait_s: float = 0.0) -> None:
        """wait_s: how long a node that is just starting is waited for."""
        prepare_environment()
        use_token()
        check_answers(address)
        self.address = address
        self._head = Head(address, CONNECT_S)
        end = time.monotonic() + wait_s
        while not (found := self._find()):
            if time.monotonic() >= end:
                raise ClusterError(
                    f"the cluster at {address} has no worker node on this machine ({socket.gethostname()}); start one "
                    f"with `ray start --address={address}`"
                )
            time.sleep(min(POLL_S, wait_s))
        self.ids = found

    def _find(self) -> set[str]:
        here = own_addresses()
        return {node for node, (address, is_head) in self._head.nodes().items() if address in here and not is_head}

    def alive(self) -> set[str]:
        """Those of them that live now; all, where the head does not say."""
        try:
            return self.ids & self._head.nodes().keys()
        except Exception:  # it is away for a while, or restarts
            return set(self.ids)

    def drain(self, why: str, deadline: float) -> None:
        """Tell the head that they are taken away at `deadline` (seconds since 1970). Raises ClusterError."""
        for node in self.alive():
            try:
                refusal = self._head.drain(node, why, deadline)
            except Exception as problem:
                reason = " ".join(str(problem).split())[:200]
                raise ClusterError(
                    f"the head at {self.address} was not told that node {node[:8]} leaves: {reason}"
                ) from None
            if refusal is not None:
                raise ClusterError(f"the head at {self.address} does not let node {node[:8]} go: {refusal}")


def own_addresses() -> set[str]:
    """The IP addresses of this machine."""
    families = (socket.AF_INET, socket.AF_INET6)
    found = (each for addresses in psutil.net_if_addrs().values() for each in addresses if each.family in families)
    return {each.address.partition("%")[0] for each in found}


def leave(address: str, within_s: float, wait_step: Callable[[float], None] = time.sleep) -> bool:
    """Drain this machine's nodes and wait until they have ended, `within_s` seconds at most; whether they have.

    Raises ClusterError as OwnNodes does.
    """
    nodes = OwnNodes(address)
    end = time.monotonic() + within_s
    nodes.drain("sctune cluster leave", time.time() + within_s)
    return wait_until_gone(nodes.alive, end, wait_step)


def wait_until_gone(
    alive: Callable[[], Collection[str]], end: float, wait_step: Callable[[float], None] = time.sleep
) -> bool:
    """Whether nothing lives any more by `end` (time.monotonic)."""
    while alive():
        if time.monotonic() >= end:
            return False
        wait_step(POLL_S)
    return True
