"""From the machine's memory to a GPU without waiting for it: pinned, and behind what the GPU is still doing.

A copy from memory that is not pinned makes the process wait until the GPU has done all that it was given before, and so
lets it run dry once for each copy. All that a training step draws or reads goes through here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Values of the CPU on a device, as another type where one is asked for; those that are there already stay.

    torch keeps the pinned copy until the GPU has read it.
    """
    kind = values.dtype if dtype is None else dtype
    if device.type == "cpu" or values.device.type != "cpu":
        return values.to(device, kind)
    values = values.to(kind)
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def to_like(values: Tensor, other: Tensor) -> Tensor:
    """Values of the CPU on the device of another tensor, and of its type."""
    return to_device(values, other.device, other.dtype)


def rows_on(rows: np.ndarray, device: torch.device) -> Tensor:
    """Numbers of rows as torch takes them on this device: it would copy an array of numpy's, and wait."""
    return to_device(torch.from_numpy(np.ascontiguousarray(rows)), device, torch.long)
