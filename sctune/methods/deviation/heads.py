"""Heads: holistic normal, patch residual (SaliencyCut, paper section 3), latent residual and plain (DRA, DevNet).

All take a feature map [N, C, S, S] and give a score [N] that is never negative. Parameter names and
shapes follow the authors' public code, so that a state dict saved by it can be loaded.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sctune.config import ModelConfig
from sctune.data.transfer import to_device
from sctune.methods.deviation.geometry import patch_offsets, patch_side
from sctune.methods.deviation.patches import random_offsets, scoring_signs
from sctune.methods.deviation.roles import NORMAL_HEAD

HIDDEN = 256
CHUNK_ELEMENTS = 2**25
"""Elements of the largest intermediate of exact scoring (128 MiB in fp32)."""
EXPORT_BATCH = 32
"""Images of a batch for which an exported program keeps to that."""


class NormalHead(nn.Module):
    """Global average pooling, a two-layer perceptron and the absolute value."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, 1)

    def forward(self, features: Tensor) -> Tensor:
        pooled = features.mean(dim=(2, 3))
        return self.fc2(torch.relu(self.fc1(pooled))).abs().flatten()


def top_k_mean(cells: Tensor, share: float) -> Tensor:
    """Mean of the highest max(1, floor(share * n)) values of [..., n]; shape [...]."""
    count = max(1, int(share * cells.shape[-1]))
    return cells.topk(count, dim=-1).values.mean(dim=-1)


class PlainHead(nn.Module):
    """A score per cell by a 1x1 convolution, its absolute value, and the mean of the top-K cells.

    DRA's seen and pseudo heads, and the whole of DevNet (METHODS 3.1, 4.1).
    """

    def __init__(self, in_channels: int, top_k: float = 0.1) -> None:
        super().__init__()
        self.top_k = top_k
        self.scoring = nn.Conv2d(in_channels, 1, kernel_size=1)

    def forward(self, features: Tensor, top_k: float | None = None) -> Tensor:
        """Scores [N]. top_k: another share of the highest cells than in training."""
        return top_k_mean(self.scoring(features).abs().flatten(1), top_k or self.top_k)


class LatentResidualHead(nn.Module):
    """What differs from the mean of reference images, cell by cell: 3x3 convolution and top-K cells (METHODS 3.1)."""

    def __init__(self, in_channels: int, top_k: float = 0.1) -> None:
        super().__init__()
        self.top_k = top_k
        self.conv = residual_block(in_channels)
        self.scoring = nn.Conv2d(in_channels, 1, kernel_size=1)

    def forward(self, features: Tensor, reference: Tensor, top_k: float | None = None) -> Tensor:
        """Scores [N]. reference: mean feature map [1, C, S, S] of the reference images; top_k: as in PlainHead."""
        return top_k_mean(self.scoring(self.conv(reference - features)).abs().flatten(1), top_k or self.top_k)


def residual_block(channels: int) -> nn.Sequential:
    """3x3 convolution, batch norm and ReLU: what both residual heads look through."""
    convolution = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


class PatchResidualHead(nn.Module):
    """Residual of P patches, 3x3 convolution, and the mean of the top-K cells (paper eq. 8, METHODS 2).

    place: patches on the main diagonal (`diag`, public code) or anywhere (`grid2d`).
    evaluation: how scores are made in eval mode without offsets: the mean over all signed patch sets
    (`exact`), over a fixed list of sets (`fixed`), or one random draw (`random`, public code).
    """

    def __init__(
        self,
        in_channels: int,
        patch_count: int = 4,
        top_k: float = 0.1,
        place: Literal["diag", "grid2d"] = "diag",
        evaluation: Literal["exact", "fixed", "random"] = "exact",
        patch_size: str = "half_plus1",
        per_sample: bool = False,
    ) -> None:
        super().__init__()
        self.patch_count = patch_count
        self.top_k = top_k
        self.place = place
        self.evaluation = evaluation
        self.patch_size = patch_size
        self.per_sample = per_sample
        self.conv = residual_block(in_channels)
        self.scoring = nn.Conv2d(in_channels, 1, kernel_size=1)

    def draw_offsets(self, side: int, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random positions [1 or batch, P, 2] of patches on a map of `side` cells."""
        draws = batch if self.per_sample else 1
        return random_offsets(side, self._patch(side), self.place, self.patch_count, draws, generator)

    def forward(
        self,
        features: Tensor,
        offsets: Tensor | list[tuple[int, int]] | None = None,
        top_k: float | None = None,
    ) -> Tensor:
        """Scores [N]. offsets: P pairs (row, column) for all, or [1 or N, P, 2]; none: drawn or averaged.

        top_k: as in PlainHead.
        """
        share = top_k or self.top_k
        if offsets is None and not self.training and self.evaluation != "random":
            return self._averaged(features, share)
        if offsets is None:
            offsets = self.draw_offsets(features.shape[-1], len(features))
        places = torch.as_tensor(offsets)
        residual = self._residual(features, places[None] if places.dim() == 2 else places)
        return top_k_mean(self.scoring(self.conv(residual)).abs().flatten(1), share)

    def _patch(self, side: int) -> int:
        return patch_side(side, self.patch_count, self.patch_size)

    def _residual(self, features: Tensor, offsets: Tensor) -> Tensor:
        patch = self._patch(features.shape[-1])
        if len(offsets) == 1:
            blocks = [features[:, :, row : row + patch, col : col + patch] for row, col in offsets[0].tolist()]
        else:
            blocks = self._gather(features, to_device(offsets, features.device), patch)
        residual = blocks[0]
        for block in blocks[1:]:
            residual = block - residual
        return residual

    @staticmethod
    def _gather(features: Tensor, offsets: Tensor, patch: int) -> list[Tensor]:
        # [N, C, rows, columns, patch, patch] is a view; one indexed copy per patch
        windows = features.unfold(2, patch, 1).unfold(3, patch, 1)
        sample = torch.arange(len(features), device=features.device)
        return [windows[sample, :, place[:, 0], place[:, 1]] for place in offsets.unbind(1)]

    def _averaged(self, features: Tensor, share: float) -> Tensor:
        """Mean score over the signed sets of positions; the convolution runs once per position.

        The convolution is linear and zero-padded per patch, so that of a residual is the signed sum of
        those of its patches; batch norm in eval mode is an affine map per channel.
        """
        # not len(), which would fix the batch of an exported program
        count, side, patch = features.shape[0], features.shape[-1], self._patch(features.shape[-1])
        sets = scoring_signs(side, patch, self.place, self.patch_count, self.evaluation).to(features)
        blocks = [features[:, :, r : r + patch, c : c + patch] for r, c in patch_offsets(side, patch, self.place)]
        scale, shift = self._folded_norm()
        stacked = torch.stack(blocks).flatten(0, 1)
        responses = nn.functional.conv2d(stacked, self._convolution().weight, padding=1)
        responses = responses.unflatten(0, (len(blocks), count)).flatten(3)  # [O, N, C, cells]
        responses = (responses * scale[:, None]).flatten(1)
        total, bias = features.new_zeros(count), self.scoring.bias
        assert bias is not None
        chunk = max(1, CHUNK_ELEMENTS // self._elements(features, patch))
        for part in sets.split(chunk):
            mixed = (part @ responses).view(len(part), count, -1, patch * patch)
            cells = torch.einsum("tncp,c->tnp", torch.relu(mixed + shift[:, None]), self.scoring.weight.flatten())
            total = total + top_k_mean((cells + bias).abs(), share).sum(dim=0)
        return total / len(sets)

    @staticmethod
    def _elements(features: Tensor, patch: int) -> int:
        """Values of one signed set: of the batch, or of EXPORT_BATCH images in an exported program, which has any."""
        images = EXPORT_BATCH if torch.compiler.is_exporting() else features.shape[0]
        return images * features.shape[1] * patch * patch

    def _convolution(self) -> nn.Conv2d:
        layer = self.conv[0]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def _folded_norm(self) -> tuple[Tensor, Tensor]:
        """Scale and shift [C] of batch norm in eval mode over the convolution without its bias."""
        norm, bias = self.conv[1], self._convolution().bias
        assert isinstance(norm, nn.BatchNorm2d) and bias is not None
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return scale, (bias - norm.running_mean) * scale + norm.bias


def build_head(name: str, model: ModelConfig, channels: int) -> nn.Module:
    """The head of a name in `roles.HEADS`, over maps of `channels`."""
    if name == NORMAL_HEAD:
        return NormalHead(channels)
    if name == "latent" or model.heads == "two_head_latent":
        return LatentResidualHead(channels, model.top_k)
    if model.heads == "two_head_patch":
        return PatchResidualHead(
            channels,
            model.patch_count,
            model.top_k,
            model.patch_place,
            model.patch_evaluation,
            model.patch_size,
            model.patch_per_sample,
        )
    return PlainHead(channels, model.top_k)
