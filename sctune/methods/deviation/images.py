"""The training images of a task, and how they reach the device: decoded, turned, normalised."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sctune.config import TrialConfig
from sctune.data.batches import rotate, rotation_angles, stream
from sctune.methods.base import TaskImages
from sctune.methods.pixels import normalise, to_pixels


def pixels_of(images: TaskImages, rows: np.ndarray, config: TrialConfig, device: torch.device) -> Tensor:
    """The images of these rows [N, 3, S, S] in [0, 1], as they were decoded."""
    return to_pixels(images.take(rows), device, config.runtime.channels_last)


def turned(pixels: Tensor, config: TrialConfig, *purpose: object) -> tuple[Tensor, Tensor]:
    """Each image turned by an angle of its own: normalised images [N, 3, S, S], and where they are real [N, 1, S, S].

    purpose: names and numbers that key the angles.
    """
    augment = config.augment
    angles = rotation_angles(len(pixels), augment.rotation_degrees, stream(config.seed, *purpose))
    images, valid = rotate(pixels, angles, augment.rotation_fill)
    return normalise(images), valid
