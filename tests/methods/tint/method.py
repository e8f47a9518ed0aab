"""The method itself; imported when one is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from sctune.config import TrialConfig
from sctune.errors import CheckpointError, StoppedError
from sctune.methods.base import Maps, Method, Scores, TaskImages, model_tensors


class Distance(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> scores [N]."""

    def __init__(self, mean: Tensor, power: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.power = power

    def forward(self, pixels: Tensor) -> Tensor:
        away = (pixels.mean(dim=(2, 3)) - self.get_buffer("mean")).abs() + 1e-6
        return (away**self.power).sum(dim=1)


class TintMethod(Method):
    """An epoch takes in the normal images that are its turn: every so many of them as there are epochs."""

    def __init__(self, config: TrialConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self.total = torch.zeros(3, dtype=torch.float64)
        self.seen = 0

    @classmethod
    def fresh(cls, config: TrialConfig, device: torch.device, weights: Path | None = None) -> Self:
        return cls(config, device)

    def prepare(self, images: TaskImages) -> None:
        self.images = images

    def run_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        rows = self.images.normals[epoch :: self.config.epochs]
        for image in self.images.take(rows):
            if should_stop():
                raise StoppedError(f"stopped in epoch {epoch + 1}")
            self.total += torch.from_numpy(image.mean(axis=(0, 1)) / 255)
            self.seen += 1
        return {"images_seen": float(self.seen)}

    def score(self, images: np.ndarray) -> Scores:
        means = np.stack([image.mean(axis=(0, 1)) / 255 for image in images]) if len(images) else np.zeros((0, 3))
        scores: Scores = ((np.abs(means - self.mean.numpy()) + 1e-6) ** self.power).sum(axis=1)
        return scores

    def model_state(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors.keys() != {"mean"} or tensors["mean"].shape != (3,):
            raise CheckpointError("the model is none of method tint: it holds a mean colour and nothing else")
        self.total, self.seen = tensors["mean"].cpu().double(), 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        return tensors | {"total": self.total}, values | {"seen": self.seen}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.load_model_state(model_tensors(tensors))
        self.total, self.seen = tensors["total"].clone(), int(values["seen"])

    def module(self) -> nn.Module:
        return Distance(self.mean.float(), self.power).eval()

    def cells(self, images: np.ndarray) -> Maps | None:
        away = np.abs(images / 255 - self.mean.numpy()).sum(axis=3)
        return np.asarray(away, dtype=np.float32)

    @property
    def mean(self) -> Tensor:
        return self.total / max(self.seen, 1)

    @property
    def power(self) -> float:
        return float(self.config.method.model_dump()["power"])
