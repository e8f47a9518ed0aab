"""From decoded images to what networks take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from sctune.backbones.entry import IMAGENET_MEAN, IMAGENET_STD
from sctune.config import RuntimeConfig
from sctune.data.transfer import to_device

ALIKE_BATCH = {"cpu": 1, "cuda": 32}
"""Images of one pass where scores must not depend on what else is scored; on a CPU one by one is as fast as many."""


def score_alike(score: Callable[[np.ndarray, int], np.ndarray], images: np.ndarray, device: torch.device) -> np.ndarray:
    """Scores [N] of uint8 images [N, S, S, 3], in batches of one size, the last one filled up.

    The same image has the same score to the last bit, whatever stands beside it: sums of floats depend on the size of
    a batch, not on what is in it. score: images and a batch size -> scores.
    """
    size = ALIKE_BATCH["cuda" if device.type == "cuda" else "cpu"]
    missing = -len(images) % size
    filled = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)]) if missing else images
    return score(filled, size)[: len(images)]


def normalise(pixels: Tensor) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] to ImageNet's mean and standard deviation."""
    return (pixels - _channels(IMAGENET_MEAN, pixels)) / _channels(IMAGENET_STD, pixels)


def _channels(values: tuple[float, ...], pixels: Tensor) -> Tensor:
    """[3, 1, 1]; on a GPU filled in there, since numbers that are copied to it would be waited for."""
    if pixels.device.type == "cpu":
        return pixels.new_tensor(values)[:, None, None]
    return torch.stack([pixels.new_full((1, 1), value) for value in values])


def to_pixels(images: np.ndarray, device: torch.device, channels_last: bool = True) -> Tensor:
    """uint8 images [N, H, W, 3] to floats [N, 3, H, W] in [0, 1] on a device."""
    # copied: torch takes neither the read-only memory of the image cache nor negative strides
    batch = to_device(torch.from_numpy(np.array(images, order="C")), device).permute(0, 3, 1, 2).float() / 255
    return batch.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def to_images(pixels: Tensor) -> Tensor:
    """Floats [N, 3, H, W] to uint8 images [N, H, W, 3]; what lies outside of [0, 1] is clipped."""
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def autocast(config: RuntimeConfig, device: torch.device) -> AbstractContextManager[object]:
    """Context of a backbone's pass: bfloat16 where the configuration asks for it."""
    if config.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def memory_format(config: RuntimeConfig) -> torch.memory_format:
    return torch.channels_last if config.channels_last else torch.contiguous_format
