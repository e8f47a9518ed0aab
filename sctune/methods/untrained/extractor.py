"""A frozen backbone as these methods look through it: pooled maps, or cells on one grid."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sctune.backbones.grid import on_one_grid
from sctune.backbones.registry import backbone_entry, tap_list
from sctune.backbones.trunk import Backbone, build_backbone
from sctune.methods.pixels import normalise


@dataclass(frozen=True)
class FrozenChoice:
    """A backbone with all of its blocks kept fixed, as `build_backbone` takes it."""

    backbone: str
    tap_names: tuple[str, ...]

    @property
    def freeze(self) -> int:
        return backbone_entry(self.backbone).n_blocks


class Extractor(nn.Module):
    """forward: pixels [N, 3, S, S] in [0, 1] -> what a method knows of each image, [N, ...] in float32.

    channels: of each of its maps, the shallowest first.
    """

    def __init__(self, backbone: Backbone, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = channels
        self.requires_grad_(False).eval()

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor: ...

    @abstractmethod
    def pooled(self, features: Tensor) -> Tensor:
        """One row [N, D] of each image from what `forward` gave."""

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """The maps [N, C_i, S_i, S_i]; one where a network gives several on one grid."""
        return [one.float() for one in self.backbone.maps(normalise(pixels))]

    @property
    def digest(self) -> str:
        """SHA-256 of what it computes: its kind, its taps and every weight."""
        found = hashlib.sha256(json.dumps([type(self).__name__, sorted(self.backbone.ends), self.channels]).encode())
        for name, value in sorted(self.state_dict().items()):
            found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


class PooledMaps(Extractor):
    """forward -> means over the cells of each channel and their standard deviations, [N, 2, sum C_i]."""

    def forward(self, pixels: Tensor) -> Tensor:
        maps = [one.flatten(2) for one in self.maps(pixels)]
        means = torch.cat([one.mean(dim=2) for one in maps], dim=1)
        # as a root of a mean of squares: torch's own would be of no number where a map has one cell
        away = [(one - one.mean(dim=2, keepdim=True)).square().mean(dim=2) for one in maps]
        return torch.stack([means, torch.cat(away, dim=1).sqrt()], dim=1)

    def pooled(self, features: Tensor) -> Tensor:
        return features[:, 0]


class CellGrid(Extractor):
    """forward -> the maps on the grid of the largest one, [N, sum C_i, S, S]."""

    def forward(self, pixels: Tensor) -> Tensor:
        return on_one_grid(self.maps(pixels))

    def pooled(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))


def build_extractor(kind: type[Extractor], backbone: str, taps: tuple[str, ...], weights: Path | None) -> Extractor:
    """weights: a state-dict file, None for random ones. Raises WeightsError as `build_backbone` does."""
    channels = tuple(tap.channels for tap in tap_list(backbone, taps))
    return kind(build_backbone(FrozenChoice(backbone, taps), weights), channels)
