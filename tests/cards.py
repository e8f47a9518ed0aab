"""Simulated cards: memory that processes share through a file, with limits, and torch's real exception.

A process holds its context as soon as it first asks for memory. What does not fit into the process's own limit, or on
the card beside the others, raises torch.OutOfMemoryError; the latter is written down too, as a collision, since it is
what packing must never let happen.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
CONTEXT = 500 * MIB


class SimulatedCard:
    """One of the cards in `folder`; index: as Ray hands it out in CUDA_VISIBLE_DEVICES."""

    def __init__(self, folder: Path, total: int, index: str = "0", name: str = "Simulated") -> None:
        self.name, self.total = name, total
        self._file, self._pid = folder / f"card-{index}.json", str(os.getpid())
        self._limit: int | None = None
        self._peak = 0

    @staticmethod
    def given(folder: Path, total: int) -> SimulatedCard:
        """The card that Ray gave to this process."""
        return SimulatedCard(folder, total, os.environ["CUDA_VISIBLE_DEVICES"])

    def allocate(self, size: int) -> None:
        with self._state() as state:
            own = state["tensors"].get(self._pid, 0) + size
            if self._limit is not None and own > self._limit:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size}; {self._limit} allowed.")
            used = {**state["tensors"], self._pid: own}
            if sum(used.values()) + CONTEXT * len(used) > self.total:
                state["collisions"] += 1
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size}.")
            state["tensors"] = used
            state["most"] = max(state["most"], len(used))
        self._peak = max(self._peak, own)

    def free(self) -> None:
        """All of this process, its context too."""
        with self._state() as state:
            state["tensors"].pop(self._pid, None)

    def begin(self) -> None:
        self._peak = 0

    def allocated(self) -> int:
        return self._peak

    def reserved(self) -> int:
        return self._peak

    def beside(self) -> int:
        return CONTEXT

    def limit(self, size: int | None) -> None:
        self._limit = size

    def utilisation(self) -> float | None:
        return 50.0

    def seen(self) -> tuple[int, int]:
        """The most processes that held memory at a time, and collisions."""
        with self._state() as state:
            return state["most"], state["collisions"]

    @contextmanager
    def _state(self) -> Iterator[dict[str, Any]]:
        with self._file.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            state = json.loads(text) if text else {"tensors": {}, "most": 0, "collisions": 0}
            try:
                yield state
            finally:
                file.seek(0)
                file.truncate()
                file.write(json.dumps(state))
