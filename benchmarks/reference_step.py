"""The plain reference of bench_step.py: one training step as METHODS 1.1 words it, and nothing cleverer.

Images are decoded and turned one by one, the saliency pass takes the whole batch and gives gradients of the
parameters that nobody uses, pseudo anomalies are made in a loop, tensors are contiguous and torch has its defaults.
Model, weights, slots, angles and patch positions are those of sctune's step, so both sides do the same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from sctune.config import TrialConfig
from sctune.data.batches import PSEUDO, draw_slots, rotation_angles, stream
from sctune.methods.deviation.detector import Detector
from sctune.methods.pixels import IMAGENET_MEAN, IMAGENET_STD


class ReferenceStep:
    """normals, anomalies: the training files, in the order of sctune's rows."""

    def __init__(
        self,
        config: TrialConfig,
        detector: Detector,
        optimiser: torch.optim.Optimizer,
        normals: Sequence[Path],
        anomalies: Sequence[Path],
    ) -> None:
        self.config = config
        self.detector = detector
        self.optimiser = optimiser
        self.normals = normals
        self.anomalies = anomalies
        self.spacing = config.data.image_size // config.augment.grid_size
        self.kernel = spline_kernel(self.spacing)

    def run(self, number: int) -> dict[str, Tensor]:
        """One update; the losses, the pasted masks [M, 1, S, S] and the batch [B, 3, S, S] that was trained on."""
        config = self.config
        size = config.budget.batch_size
        slots = draw_slots(
            len(self.normals), len(self.anomalies), config.normal_slots, size, number, config.seed, True, True
        )
        files = [self.normals[row] for row in slots.index[: config.normal_slots]]
        files += [self.anomalies[row] for row in slots.index[config.normal_slots :]]
        angles = rotation_angles(
            size, config.augment.rotation_degrees, stream(config.seed, "rotation", number)
        ).tolist()
        images = torch.stack([self._load(file, angle) for file, angle in zip(files, angles, strict=True)])
        labels = torch.from_numpy(slots.labels)
        maps = self._saliency(images, labels, number)
        masks = []
        for place, donor in zip(np.flatnonzero(slots.labels == PSEUDO), slots.donors, strict=True):
            salient = maps[donor] > config.augment.threshold
            images[place] = torch.where(salient, images[place], images[donor])
            masks.append(~salient)
        self.detector.train()
        losses = self._losses(images, labels, number, "offsets")
        loss = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.detector.parameters(), config.optim.clip_norm)
        self.optimiser.step()
        return {"loss": loss.detach(), "gradient_norm": norm, "masks": torch.stack(masks), "images": images}

    def _load(self, file: Path, angle: float) -> Tensor:
        size = self.config.data.image_size
        with Image.open(file) as stored:
            image = stored.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        turned = transforms.rotate(image, angle, interpolation=InterpolationMode.NEAREST, fill=[0])
        return transforms.normalize(transforms.to_tensor(turned), IMAGENET_MEAN, IMAGENET_STD)

    def _saliency(self, images: Tensor, labels: Tensor, number: int) -> Tensor:
        """Maps [B, 1, S, S] in [0, 1] of every image of the batch; raw pseudo slots count as anomalous here."""
        self.detector.eval()
        inputs = images.clone().requires_grad_()
        losses = self._losses(inputs, labels, number, "saliency")
        torch.stack(list(losses.values())).sum().backward()
        assert inputs.grad is not None
        self.detector.zero_grad()
        return torch.stack([self._map(gradient) for gradient in inputs.grad])

    def _map(self, gradient: Tensor) -> Tensor:
        strength = gradient.square().mean(dim=0, keepdim=True).sqrt()
        cells = functional.adaptive_avg_pool2d(strength, self.config.augment.grid_size)
        padding = (self.kernel.shape[-1] - 1) // 2
        wave = functional.conv_transpose2d(cells[None], self.kernel, stride=self.spacing, padding=padding)
        smooth = functional.interpolate(wave, size=gradient.shape[-2:], mode="bilinear", align_corners=True)[0]
        return (smooth - smooth.min()) / (smooth.max() - smooth.min() + 1e-20)

    def _losses(self, images: Tensor, labels: Tensor, number: int, purpose: str) -> dict[str, Tensor]:
        margin = self.config.loss.margin
        offsets = self.detector.draw_offsets(len(images), stream(self.config.seed, purpose, number))
        scores = self.detector(images, offsets)
        return {
            head: torch.where(target, (margin - scores[head]).clamp_min(0), scores[head].abs()).mean()
            for head, target in (("normal", labels == 0), ("anomaly", labels != 0))
        }


def spline_kernel(spacing: int) -> Tensor:
    """[1, 1, K, K] B-spline of order 2 as the public code builds it (METHODS 1.3)."""
    box = torch.ones(1, 1, spacing, spacing)
    kernel = box
    for order in (1, 2):
        kernel = functional.conv2d(kernel, box, padding=order * spacing) / spacing**2
    return kernel
