"""Distance of an image's patches to the nearest normal ones (PatchCore, CVPR 2022), with what anomalies add.

The bank is the union of the coresets of the folds, so that the scale needs no other one: held-out distances of the
normals of a fold are those to the other folds' coresets, each continued until they are as many patches as the bank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.data.batches import stream
from sctune.methods.density import Gaussian
from sctune.methods.untrained.cells import CellMethod, CellScore, Distances, Seen, patch_cells
from sctune.methods.untrained.combination import Combination
from sctune.methods.untrained.coreset import greedy_centres
from sctune.methods.untrained.crossfit import FOLDS, Weight
from sctune.methods.untrained.entry import PatchBankSection
from sctune.methods.untrained.reference import Ask


class Bank(nn.Module):
    """Maps [N, C, S, S] -> distance [N, S, S] of each cell to the bank, in float64.

    mean, scale [C]: what cells are standardised by; patches [B, C]: standardised; squares [B]: of their length.
    neighbours: nearest ones whose mean distance counts; neighbourhood: cells a side that a patch is the mean of.
    """

    mean: Tensor
    scale: Tensor
    patches: Tensor
    squares: Tensor

    def __init__(self, channels: int, size: int, neighbours: int, neighbourhood: int) -> None:
        super().__init__()
        for name, shape in (("mean", (channels,)), ("scale", (channels,)), ("patches", (size, channels))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))
        self.neighbours = neighbours
        self.neighbourhood = neighbourhood

    def forward(self, maps: Tensor) -> Tensor:
        return self.distances(maps, self.patches, self.squares)

    def distances(self, maps: Tensor, patches: Tensor, squares: Tensor) -> Tensor:
        """As `forward`, to other patches [B, C]."""
        cells = (patch_cells(maps, self.neighbourhood).double() - self.mean) / self.scale
        away = cells.square().sum(dim=2, keepdim=True) + squares - 2 * cells @ patches.T
        # the same, and several times as fast, for one
        near = away.amin(dim=2, keepdim=True) if self.neighbours == 1 else self._nearest(away)
        return near.clamp_min(0).sqrt().mean(dim=2).unflatten(1, maps.shape[2:])

    def _nearest(self, away: Tensor) -> Tensor:
        return away.topk(min(self.neighbours, away.shape[2]), dim=2, largest=False).values


@dataclass(frozen=True)
class Coreset:
    """Standardised patches [M, C] of each fold, those first that a smaller coreset has too; size: of a bank."""

    folds: tuple[Tensor, ...]
    size: int

    def first(self, folds: Iterable[int]) -> Tensor:
        """A bank [B, C] of as many patches of each of these folds; fewer than `size` where there are no more."""
        parts = [self.folds[fold] for fold in folds]
        shares = [self.size // len(parts) + (place < self.size % len(parts)) for place in range(len(parts))]
        return torch.cat([part[:share] for part, share in zip(parts, shares, strict=True)])


class PatchBankMethod(CellMethod):
    sums_maps = False

    def fit_cells(
        self, known: Seen, folds: NDArray[np.intp], ask: Ask
    ) -> tuple[nn.Module, Sequence[Distances], dict[str, float]]:
        bank, coreset = self._bank(known, folds, ask)
        rest = [coreset.first(other for other in range(FOLDS) if other != fold) for fold in range(FOLDS)]
        squares = [patches.square().sum(dim=1) for patches in rest]
        others = [partial(bank.distances, patches=own, squares=of) for own, of in zip(rest, squares, strict=True)]
        return bank, others, {"bank_patches": float(len(bank.patches))}

    def blank(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        section, channels = self._section, self.extractor.channels
        bank = Bank(channels, len(tensors["bank.patches"]), section.neighbours, section.neighbourhood)
        density = Gaussian(channels, tensors["density.axes"].shape[2], 1)
        return CellScore(bank, density, Combination(channels), section.top_k)

    @property
    def candidates(self) -> int:
        return self._section.candidates

    @property
    def neighbourhood(self) -> int:
        return self._section.neighbourhood

    @property
    def top_k(self) -> float:
        return self._section.top_k

    @property
    def weights(self) -> tuple[Weight, Weight]:
        return self._section.push, self._section.logistic

    def _bank(self, known: Seen, at: NDArray[np.intp], ask: Ask) -> tuple[Bank, Coreset]:
        """at: the fold of each image."""
        section, seed = self._section, self.config.seed
        patches = known.patches.double()
        mean, scale = patches.mean(dim=0), patches.std(dim=0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        standard = ((patches - mean) / scale).float().to(self.device)
        fold = torch.from_numpy(at[known.image]).to(self.device)
        chosen = []
        for number in range(FOLDS):
            ask()
            own = torch.nonzero(fold == number)[:, 0]
            count = -(-section.bank_size // (FOLDS - 1))
            chosen.append(own[greedy_centres(standard[own], count, stream(seed, "bank", number))])
        coreset = Coreset(tuple(standard[rows].double() for rows in chosen), section.bank_size)
        kept = coreset.first(range(FOLDS))
        bank = Bank(len(mean), len(kept), section.neighbours, section.neighbourhood)
        for name, value in (("mean", mean), ("scale", scale), ("patches", kept)):
            bank.get_buffer(name).copy_(value)
        bank.squares.copy_(bank.patches.square().sum(dim=1))
        return bank.to(self.device), coreset

    @property
    def _section(self) -> PatchBankSection:
        section = self.config.method
        assert isinstance(section, PatchBankSection)
        return section
