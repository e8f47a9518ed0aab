"""The GPU that a process computes on: its memory, what the process has taken of it, and a limit to that.

Everything that asks a card asks it here, so that tests can put a card of their own in its place.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import torch

CONTEXT_BYTES = 768 * 2**20
"""What a process holds on a card besides its tensors (CUDA's context, kernels and handles of its libraries), where it
was not measured: 400 to 600 MB are usual."""

MOST_CONTEXT_BYTES = 2 * 2**30
"""More than that in use beside tensors is of other processes."""

SAMPLE_S = 0.5
"""Seconds between two looks at how busy a card is; the driver's own figure is of the last sixth of a second to one."""


class Card(Protocol):
    """A GPU as one process sees it; all sizes in bytes.

    name: of its kind; total: its memory.
    """

    @property
    def name(self) -> str: ...

    @property
    def total(self) -> int: ...

    def begin(self) -> None:
        """Forget the peaks so far."""

    def allocated(self) -> int:
        """The most that tensors of this process held at a time, since `begin`."""

    def reserved(self) -> int:
        """The most that this process took from the card for tensors, holes included, since `begin`."""

    def beside(self) -> int:
        """What is in use beside this process's tensors: its context, and whatever other processes hold."""

    def limit(self, size: int | None) -> None:
        """From now on tensors of this process get no more than so much, and torch.OutOfMemoryError beyond it.

        None: no limit.
        """

    def utilisation(self) -> float | None:
        """Percent of the last moment in which the card computed, for whichever process; None where nobody tells."""


class CudaCard:
    """The card of a CUDA device, by torch's allocator and NVIDIA's management library."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        properties = torch.cuda.get_device_properties(device)
        self.name, self.total = str(properties.name), int(properties.total_memory)
        self._tells = True

    def begin(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def allocated(self) -> int:
        return int(torch.cuda.max_memory_allocated(self._device))

    def reserved(self) -> int:
        return int(torch.cuda.max_memory_reserved(self._device))

    def beside(self) -> int:
        free, total = torch.cuda.mem_get_info(self._device)
        return max(0, int(total - free) - int(torch.cuda.memory_reserved(self._device)))

    def limit(self, size: int | None) -> None:
        share = 1.0 if size is None else min(1.0, max(0.0, size / self.total))
        torch.cuda.set_per_process_memory_fraction(share, self._device)

    def utilisation(self) -> float | None:
        if not self._tells:
            return None
        try:
            return float(torch.cuda.utilization(self._device))
        except Exception:  # the library is missing, or the driver does not let it ask: each has an error of its own
            self._tells = False
            return None


def card_of(device: torch.device) -> Card | None:
    """The card behind a device; None for the CPU."""
    return CudaCard(device) if device.type == "cuda" else None


def own_card() -> Card | None:
    """The card that this process was given; None where there is none."""
    return card_of(torch.device("cuda", torch.cuda.current_device())) if torch.cuda.is_available() else None


def tensor_limit(share: float, total: int, context: int = CONTEXT_BYTES) -> int | None:
    """Bytes that tensors may take of a card of `total` bytes by a process that has a share of it; None: no limit.

    A whole card has no limit. The context counts as a part of the share, but never as more than half of it.
    """
    if share <= 0 or share >= 1:
        return None
    return int(share * total) - min(context, int(share * total) // 2)


class Usage:
    """How busy a card was: the mean of what was seen, in percent; None where nobody tells."""

    def __init__(self) -> None:
        self._seen: list[float] = []

    def saw(self, percent: float) -> None:
        self._seen.append(percent)

    @property
    def mean(self) -> float | None:
        return sum(self._seen) / len(self._seen) if self._seen else None


@contextmanager
def watched(card: Card | None, every_s: float = SAMPLE_S) -> Iterator[Usage]:
    """Looks at the card from a thread of its own while inside; it waits for nothing that the card computes."""
    usage = Usage()
    if card is None:
        yield usage
        return
    done = threading.Event()

    def look() -> None:
        while not done.wait(every_s):
            percent = card.utilisation()
            if percent is None:
                return
            usage.saw(percent)

    thread = threading.Thread(target=look, name="sctune-card", daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        done.set()
        with suppress(RuntimeError):
            thread.join(timeout=1.0)
