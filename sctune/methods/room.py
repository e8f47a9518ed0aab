"""Memory for what trainings keep of images between epochs: one room for all trainings of a process.

A trial trains all of its tasks side by side, a confirmation each seed of each category. What each of them keeps is
bounded, and so is what they keep together: what finds no room is made anew each time, which changes no number.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

LEAST_BYTES = 2**30
"""Of a process, however small the machine, and of what it keeps on a GPU."""
CORE_SHARE = 4
"""A process may have the memory that a core of the machine has, divided by this: a trial has one core at least."""


class Room:
    """most: bytes that all holders have together; it grows to what a single one is allowed."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._shut = False
        # reentrant: the collector may end a holder in the middle of a call
        self._lock = threading.RLock()

    @property
    def left(self) -> int:
        return 0 if self._shut else self.most - self.held

    @contextmanager
    def shut(self) -> Iterator[None]:
        """While inside, nobody finds room."""
        before, self._shut = self._shut, True
        try:
            yield
        finally:
            self._shut = before

    def allow(self, most: int) -> None:
        """Somebody asked for so much for one holder."""
        with self._lock:
            self.most = max(self.most, most)

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self.left:
                return False
            self.held += size
            return True

    def give_back(self, sizes: list[int]) -> None:
        with self._lock:
            # first, since a sum may call the collector, and it this method for another holder
            freed = sum(sizes)
            sizes.clear()
            self.held -= freed

    def for_more(self, holders: int) -> int:
        """Bytes that so many more, each like all that hold now together, would find room for."""
        return max(0, min(self.held * holders, self.left))

    def share_without(self, holders: int) -> float:
        """Share of so many holders, each like all that hold now together, that would find no room."""
        if not self.held:
            return 0.0
        return 1 - (1 + self.for_more(holders - 1) / self.held) / holders


def _of_this_machine() -> int:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # a system that does not tell
        return LEAST_BYTES
    return max(LEAST_BYTES, memory // (os.cpu_count() or 1) // CORE_SHARE)


HOST, ON_GPU = Room(_of_this_machine()), Room(LEAST_BYTES)


def room_of(device: torch.device) -> Room:
    """The room for tensors on a device."""
    return HOST if device.type == "cpu" else ON_GPU


class Share:
    """What one holder keeps, at most `most` bytes; given back when the share is gone.

    room: None: of the process, in the machine's memory. spare: bytes of it that are left to others.
    """

    def __init__(self, most: int, room: Room | None = None, spare: int = 0) -> None:
        self.most = most
        self._room = HOST if room is None else room
        self._room.allow(most + spare)
        self._spare = spare
        self._sizes: list[int] = []
        weakref.finalize(self, self._room.give_back, self._sizes)

    @property
    def left(self) -> int:
        """Bytes that may still be taken."""
        return max(0, min(self.most - sum(self._sizes), self._room.left - self._spare))

    def take(self, size: int) -> bool:
        """Whether so many bytes more may be kept; they are counted from now on."""
        if size > self.left or not self._room.take(size):
            return False
        self._sizes.append(size)
        return True
