"""The detector: backbone, image pyramid and heads; from images to one anomaly score each."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sctune.config import RuntimeConfig, TrialConfig
from sctune.geometry import feature_side, scale_sizes
from sctune.model.backbone import Backbone, build_backbone
from sctune.model.heads import NormalHead, PatchResidualHead
from sctune.model.weights import resolve_weights

NORMAL = "normal"
ANOMALY = "anomaly"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(pixels: Tensor) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] to ImageNet's mean and standard deviation."""
    mean = pixels.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = pixels.new_tensor(IMAGENET_STD)[:, None, None]
    return (pixels - mean) / std


def to_pixels(images: np.ndarray, device: torch.device, channels_last: bool = True) -> Tensor:
    """uint8 images [N, H, W, 3] to floats [N, 3, H, W] in [0, 1] on a device."""
    # a slice of the read-only image cache is copied; torch wants memory that it could write to
    batch = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device).permute(0, 3, 1, 2).float() / 255
    return batch.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def autocast(config: RuntimeConfig, device: torch.device) -> AbstractContextManager[object]:
    """Context of a backbone's pass: bfloat16 where the configuration asks for it."""
    if config.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


class Detector(nn.Module):
    """Two heads over a shared backbone, at every scale of the pyramid (paper section 3; METHODS 1.2, row 17).

    forward gives a score [N] per head, the mean over the scales; the anomaly score is
    the anomaly head's minus the normal head's.
    """

    def __init__(self, config: TrialConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        model = config.model
        self.normal = NormalHead(backbone.channels)
        self.anomaly = PatchResidualHead(
            backbone.channels,
            model.patch_count,
            model.top_k,
            model.patch_place,
            model.patch_evaluation,
            model.patch_size,
            model.patch_per_sample,
        )

    def draw_offsets(self, batch: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Random patch positions for one forward pass, [1 or batch, P, 2] for each scale."""
        model = self.config.model
        sizes = scale_sizes(self.config.data.image_size, model.n_scales)
        sides = [feature_side(size, model.backbone, model.tap) for size in sizes]
        return [self.anomaly.draw_offsets(side, batch, generator) for side in sides]

    def forward(self, images: Tensor, offsets: list[Tensor] | None = None) -> dict[str, Tensor]:
        """Scores of normalised images [N, 3, H, W]: head name -> [N]."""
        normal, anomaly = [], []
        for scale, batch in enumerate(self._pyramid(images)):
            # heads stay in fp32: scores in bfloat16 would tie
            with autocast(self.config.runtime, images.device):
                features = self.backbone(batch)
            features = features.float()
            normal.append(self.normal(features))
            anomaly.append(self.anomaly(features, None if offsets is None else offsets[scale]))
        return {NORMAL: torch.stack(normal).mean(dim=0), ANOMALY: torch.stack(anomaly).mean(dim=0)}

    def anomaly_score(self, images: Tensor) -> Tensor:
        """One score [N] per normalised image; higher is more anomalous."""
        return combine(self(images))

    def score_images(self, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """Scores [N] (float64) of uint8 images [N, S, S, 3], in eval mode; the mode is put back."""
        was_training, device = self.training, next(self.parameters()).device
        self.eval()
        try:
            with torch.inference_mode():
                parts = [
                    self.anomaly_score(
                        normalise(to_pixels(images[i : i + batch_size], device, self.config.runtime.channels_last))
                    ).double()
                    for i in range(0, len(images), batch_size)
                ]
        finally:
            self.train(was_training)
        return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)

    def _pyramid(self, images: Tensor) -> list[Tensor]:
        model = self.config.model
        levels = [images]
        for size in scale_sizes(images.shape[-1], model.n_scales)[1:]:
            corners = {"nearest": None, "bilinear": False}[model.pyramid_interpolation]
            levels.append(
                nn.functional.interpolate(
                    images, size=(size, size), mode=model.pyramid_interpolation, align_corners=corners
                )
            )
        return levels


def combine(scores: dict[str, Tensor]) -> Tensor:
    """Anomaly score [N] from the heads' scores: anomaly minus normal (METHODS 1.1)."""
    return scores[ANOMALY] - scores[NORMAL]


def head_targets(labels: Tensor) -> dict[str, Tensor]:
    """Target [N] of each head for labels 0 normal, 1 seen, 2 pseudo (METHODS 1.2, row 13)."""
    anomalous = (labels != 0).float()
    return {NORMAL: 1 - anomalous, ANOMALY: anomalous}


def build_detector(config: TrialConfig, weights: Path | None = None) -> Detector:
    """A fresh detector: backbone weights as the configuration says, heads initialised from its seed.

    weights: the resolved file, where the caller has it already (the driver fetches it once).
    Raises WeightsError where weights cannot be had.
    """
    if weights is None:
        weights = resolve_weights(config.model.backbone, config.model.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Detector(config, build_backbone(config.model, weights))


def load_detector(config: TrialConfig, weights: Path) -> Detector:
    """A trained detector from its safetensors file; backbone weights are in it. In eval mode."""
    detector = Detector(config, build_backbone(config.model, None))
    detector.load_state_dict(load_file(weights))
    if config.runtime.channels_last:
        detector.to(memory_format=torch.channels_last)
    return detector.eval()
