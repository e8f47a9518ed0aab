"""Freed memory of the C library: kept from a process's first training on the CPU, given back between trainings.

glibc maps every block above 32 MiB anew, and most of the smaller ones; torch asks for the tensors of a step again and
again, and the kernel fills each new page with zeros. Kept blocks save a quarter of a training's processor time.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Mapping

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3), from malloc.h."""
NEVER = -1

OWN_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_")
_TUNABLES = re.compile(r"glibc\.malloc\.(mmap_max|mmap_threshold|top_pad|trim_threshold)=")

_keeps = False
"""Whether this process keeps what it frees."""


def keep_freed_memory(device: torch.device) -> bool:
    """From now on this process keeps what it frees, for its next tensors; returns whether it does.

    Holds for the whole process until its end; a second call changes nothing. Does nothing for another device than the
    CPU, without glibc, and where the environment says itself how glibc keeps memory (mallopt(3)) or preloads another
    allocator.
    """
    global _keeps
    libc = _glibc()
    if device.type != "cpu" or libc is None or decided_by_environment(os.environ):
        return False
    # without mmap every block comes from the heap, and the heap is never made smaller; both numbers are needed
    _keeps = bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, NEVER))
    return _keeps


def give_memory_back() -> None:
    """Give all free pages back to the system, those between used ones too; does nothing in a process that keeps none.

    Between trainings of different sizes: the next one's tensors fit into no hole that the last one's left.
    """
    libc = _glibc()
    if _keeps and libc is not None:
        libc.malloc_trim(0)


def decided_by_environment(environment: Mapping[str, str]) -> bool:
    """Whether somebody set how memory is kept, by glibc's own variables or by another allocator in LD_PRELOAD."""
    return (
        any(name in environment for name in OWN_VARIABLES)
        or _TUNABLES.search(environment.get("GLIBC_TUNABLES", "")) is not None
        or "malloc" in environment.get("LD_PRELOAD", "")
    )


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    # musl has neither this nor mallopt
    return libc if hasattr(libc, "gnu_get_libc_version") else None
