"""The training images of a task, and how they reach the device: decoded, turned, normalised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sctune.config import TrialConfig
from sctune.data.batches import rotate, rotation_angles, stream
from sctune.methods.deviation.detector import normalise, to_pixels


@dataclass(frozen=True)
class TrainingImages:
    """Decoded images uint8 [N, S, S, 3] and the rows of the training normals and anomalies in it."""

    array: np.ndarray
    normals: np.ndarray
    anomalies: np.ndarray

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows]

    def pixels(self, rows: np.ndarray, config: TrialConfig, device: torch.device) -> Tensor:
        """Images [N, 3, S, S] in [0, 1], as they were decoded."""
        return to_pixels(self.take(rows), device, config.runtime.channels_last)


def turned(pixels: Tensor, config: TrialConfig, *purpose: object) -> tuple[Tensor, Tensor]:
    """Each image turned by an angle of its own: normalised images [N, 3, S, S], and where they are real [N, 1, S, S].

    purpose: names and numbers that key the angles.
    """
    augment = config.augment
    angles = rotation_angles(len(pixels), augment.rotation_degrees, stream(config.seed, *purpose))
    images, valid = rotate(pixels, angles, augment.rotation_fill)
    return normalise(images), valid
