"""The networks of CutPaste: a trunk, the head that trains it and is then dropped, and the score of its features."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sctune.backbones.trunk import build_backbone
from sctune.config import TrialConfig
from sctune.errors import CheckpointError
from sctune.methods.cutpaste.entry import RULES, batch_norm, section_of
from sctune.methods.density import Gaussian, distances
from sctune.methods.pixels import autocast, memory_format, normalise

WIDTH, LAST_WIDTH = 512, 128
"""Of the head's layers. The paper has an MLP and names no sizes; these are those of its authors' code for an earlier
paper, which has eight layers of 512."""


class Trunk(nn.Module):
    """A backbone whose map is averaged over its cells: what the head sees, and what the Gaussian is of.

    unit_length: whether `described` brings features to length 1.
    """

    def __init__(self, config: TrialConfig, weights: Path | None) -> None:
        super().__init__()
        choice = config.model.model_copy(update={"batch_norm": batch_norm(config)})
        self.backbone = build_backbone(choice, weights)
        self.unit_length = section_of(config).l2_normalise

    @property
    def channels(self) -> int:
        return self.backbone.channels

    def described(self, maps: Tensor) -> Tensor:
        """Features [N, C] of the Gaussian from the backbone's maps [N, C, S, S]."""
        pooled = pool(maps)
        return nn.functional.normalize(pooled, dim=1) if self.unit_length else pooled

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """In eval mode and without gradients; the mode is put back."""
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(was_training)


class Classifier(nn.Module):
    """Normalised images [N, 3, S, S] -> logits [N, K] of the classes: normal, what is pasted, labelled anomalies."""

    def __init__(self, config: TrialConfig, trunk: Trunk) -> None:
        super().__init__()
        self.runtime = config.runtime
        self.trunk = trunk
        self.head = build_head(trunk.channels, section_of(config).head_depth, class_count(config))

    def forward(self, images: Tensor) -> Tensor:
        with autocast(self.runtime, images.device):
            maps = self.trunk.backbone(images)
        logits: Tensor = self.head(pool(maps))
        return logits


class PixelScore(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> Mahalanobis distances [N]: a copy on the CPU."""

    def __init__(self, trunk: Trunk, density: Gaussian) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(trunk).cpu().to(memory_format=torch.contiguous_format)
        self.density = copy.deepcopy(density).cpu()
        self.requires_grad_(False).eval()

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.trunk.described(self.trunk.backbone(normalise(pixels)))
        return distances(self.density(features)).float()


def class_count(config: TrialConfig) -> int:
    section = section_of(config)
    labelled = section.seen == "class" and config.n_anomalies != 0
    return 1 + len(RULES[section.variant]) + labelled


def pool(maps: Tensor) -> Tensor:
    """Means [N, C] over the cells of maps [N, C, S, S]; in single precision, whatever the backbone computes in."""
    return maps.float().mean(dim=(2, 3))


def build_head(channels: int, depth: int, classes: int) -> nn.Sequential:
    """An MLP [N, channels] -> [N, classes]: `depth` layers of 512, one of 128, and the classes."""
    layers: list[nn.Module] = []
    for width in [WIDTH] * depth + [LAST_WIDTH]:
        layers += [nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Linear(channels, classes))


def build_classifier(config: TrialConfig, weights: Path | None, device: torch.device) -> Classifier:
    """weights: the backbone's file, None for random ones. The seed draws all that is in no file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = Classifier(config, Trunk(config, weights))
    return net.to(device).to(memory_format=memory_format(config.runtime))


def load_part(part: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Take over a state; raises CheckpointError, which calls the part `what`, where it does not fit."""
    own = part.state_dict()
    wrong = sorted(set(own) ^ set(tensors)) or [
        name for name, value in tensors.items() if value.shape != own[name].shape or value.dtype != own[name].dtype
    ]
    if wrong:
        raise CheckpointError(
            f"the model is none of method cutpaste as it is configured: its {what} lacks {wrong[0]!r} or has another"
        )
    part.load_state_dict(dict(tensors))
