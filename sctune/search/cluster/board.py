"""Where the drivers of a cluster see each other: an entry each in the key-value store of Ray's head.

An entry is written again every BEAT_S seconds and counts as long as it changes, by the reader's own clock: a driver
that was killed is gone after STALE_S seconds, without anybody's hand, and clocks that differ do no harm. A detached
actor would have to be started by somebody, and would die with its node; the store is there wherever the head is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from sctune.search.cluster.shares import Claim
from sctune.trial import ray_private

BEAT_S = 2.0
"""Seconds between the signs of life of a driver."""

STALE_S = 15.0
"""Seconds without one, after which a driver counts as gone."""

PREFIX = "sctune-driver:"


class Store(Protocol):
    """Keys and values that all drivers of a cluster see; `sctune.trial.ray_private` is one."""

    def key_value(self, key: str) -> bytes | None: ...
    def set_key_value(self, key: str, value: bytes) -> None: ...
    def keys_with(self, prefix: str) -> list[str]: ...
    def remove_key(self, key: str) -> None: ...


class Board:
    """The entries of the drivers that live. clock: seconds, monotonic."""

    def __init__(self, store: Store = ray_private, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._seen: dict[str, tuple[int, float]] = {}
        self._fresh: set[str] = set()

    def put(self, claim: Claim) -> None:
        self._store.set_key_value(PREFIX + claim.key, claim.to_json())

    def remove(self, key: str) -> None:
        self._store.remove_key(PREFIX + key)

    def read(self) -> list[Claim]:
        """The claims of all drivers that live, or have not been seen for long enough to tell; by key.

        What stays of dead ones is cleared away.
        """
        now, found = self._clock(), []
        for name in self._store.keys_with(PREFIX):
            content = self._store.key_value(name)
            claim = None if content is None else Claim.from_json(content)
            if claim is None or name != PREFIX + claim.key:
                continue
            beat, since = self._seen.get(name, (None, now))
            if beat is None or beat != claim.beat:
                if beat is not None:
                    self._fresh.add(claim.key)
                since = now
                self._seen[name] = (claim.beat, now)
            if now - since < STALE_S:
                found.append(claim)
            elif now - since > 4 * STALE_S:
                self._store.remove_key(name)
        return found

    def living(self, wait: Callable[[float], None] = time.sleep) -> list[Claim]:
        """The claims of those that are seen to change while it waits: for two seconds, STALE_S where one is dead."""
        end = self._clock() + STALE_S
        while any(claim.key not in self._fresh for claim in self.read()) and self._clock() < end:
            wait(BEAT_S / 4)
        return [claim for claim in self.read() if claim.key in self._fresh]
