"""A frozen backbone as these methods look through it: pooled maps, or cells on one grid."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sctune.backbones.entry import Tap
from sctune.backbones.grid import on_one_grid
from sctune.backbones.registry import backbone_entry, tap_list
from sctune.backbones.trunk import Backbone, build_backbone
from sctune.methods.pixels import normalise


@dataclass(frozen=True)
class FrozenChoice:
    """A backbone with all of its blocks kept fixed, as `build_backbone` takes it."""

    backbone: str
    tap_names: tuple[str, ...]
    # of frozen blocks neither means anything
    batch_norm: Literal["train", "eval"] = "train"
    batch_norm_momentum: float | None = None

    @property
    def freeze(self) -> int:
        return backbone_entry(self.backbone).n_blocks


class Extractor(nn.Module):
    """forward: pixels [N, 3, S, S] in [0, 1] -> what a method knows of each image, [N, ...] in float32.

    taps: of the backbone, the shallowest first.
    """

    def __init__(self, backbone: Backbone, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.backbone = backbone
        self.taps = tuple(taps)
        self.requires_grad_(False).eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.join([self.part(one) for one in self.maps(pixels)])

    @staticmethod
    @abstractmethod
    def part(one: Tensor) -> Tensor:
        """What is kept of one map [N, C_i, S_i, S_i]."""

    @staticmethod
    @abstractmethod
    def join(parts: list[Tensor]) -> Tensor:
        """Features [N, ...] from the parts of all maps, the shallowest first."""

    @staticmethod
    @abstractmethod
    def pooled(features: Tensor) -> Tensor:
        """One row [N, D] of each image from what `forward` gave."""

    def kept(self, pixels: Tensor) -> Tensor:
        """What is kept of each image, [N, F]: the parts of all maps, which take less room than what `join` makes."""
        return torch.cat([self.part(one).flatten(1) for one in self.maps(pixels)], dim=1)

    def opened(self, rows: Tensor, shapes: Sequence[torch.Size]) -> Tensor:
        """Features [N, ...] from rows [N, F] of `kept`. shapes: of the parts of one image."""
        parts = rows.split([shape.numel() for shape in shapes], dim=1)
        return self.join([part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)])

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """The maps [N, C_i, S_i, S_i]; one where a network gives several on one grid."""
        return [one.float() for one in self.backbone.maps(normalise(pixels))]

    @property
    def channels(self) -> int:
        """Of all of its maps."""
        return self.backbone.channels

    @property
    def digest(self) -> str:
        """SHA-256 of what `kept` computes: its kind, its taps and every weight."""
        found = hashlib.sha256(repr(("parts", type(self).__name__, self.taps)).encode())
        for name, value in sorted(self.state_dict().items()):
            found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()


class PooledMaps(Extractor):
    """forward -> means over the cells of each channel and their standard deviations, [N, 2, sum C_i]."""

    @staticmethod
    def part(one: Tensor) -> Tensor:
        cells = one.flatten(2)
        # as a root of a mean of squares: torch's own would be of no number where a map has one cell
        away = (cells - cells.mean(dim=2, keepdim=True)).square().mean(dim=2)
        return torch.stack([cells.mean(dim=2), away.sqrt()], dim=1)

    @staticmethod
    def join(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, dim=2)

    @staticmethod
    def pooled(features: Tensor) -> Tensor:
        return features[:, 0]


class CellGrid(Extractor):
    """forward -> the maps on the grid of the largest one, [N, sum C_i, S, S]."""

    @staticmethod
    def part(one: Tensor) -> Tensor:
        return one

    @staticmethod
    def join(parts: list[Tensor]) -> Tensor:
        return on_one_grid(parts)

    @staticmethod
    def pooled(features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))


def build_extractor(kind: type[Extractor], backbone: str, taps: tuple[str, ...], weights: Path | None) -> Extractor:
    """weights: a state-dict file, None for random ones. Raises WeightsError as `build_backbone` does."""
    return kind(build_backbone(FrozenChoice(backbone, taps), weights), tap_list(backbone, taps))
