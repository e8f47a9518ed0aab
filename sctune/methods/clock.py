"""Time of work that a device may still be doing when a call has returned."""

from __future__ import annotations

import time

import torch


def now(device: torch.device) -> float:
    """Seconds, as `time.perf_counter` has them, when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
