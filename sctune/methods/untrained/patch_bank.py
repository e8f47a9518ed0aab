"""Distance of an image's patches to the nearest normal ones (PatchCore, CVPR 2022), with what anomalies add.

The bank is the union of the coresets of the folds, so that the scale needs no other one: held-out distances of the
normals of a fold are those to the other folds' coresets, each continued until they are as many patches as the bank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.data.batches import stream
from sctune.methods.base import Maps
from sctune.methods.density import Gaussian, Rows, fit_gaussian
from sctune.methods.untrained.combination import Combination
from sctune.methods.untrained.coreset import greedy_centres
from sctune.methods.untrained.crossfit import FOLDS, choose_weights, cross_fit, folds_of
from sctune.methods.untrained.entry import PatchBankSection
from sctune.methods.untrained.extractor import CellGrid
from sctune.methods.untrained.labelled import directions
from sctune.methods.untrained.reference import Ask, Images, Reference, raised

MOST_HELD = 200
"""Normals whose held-out distances are taken: enough for a mean and a standard deviation."""


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


class BankScore(nn.Module):
    """Maps [N, C, S, S] -> scores [N] in float64. top_k: share of the highest cells that make the distance."""

    def __init__(self, bank: Bank, density: Gaussian, combination: Combination, top_k: float) -> None:
        super().__init__()
        self.bank = bank
        self.density = density
        self.combination = combination
        self.top_k = top_k

    def forward(self, maps: Tensor) -> Tensor:
        away = self.density(maps.mean(dim=(2, 3)))
        scores: Tensor = self.combination(highest(self.bank(maps), self.top_k), away)
        return scores


def patch_cells(maps: Tensor, neighbourhood: int) -> Tensor:
    """Maps [N, C, S, S] as means over each cell's neighbourhood inside the map, cell by cell: [N, S * S, C]."""
    if neighbourhood > 1:
        maps = nn.functional.avg_pool2d(maps, neighbourhood, 1, neighbourhood // 2, count_include_pad=False)
    return maps.flatten(2).transpose(1, 2)


def highest(cells: Tensor, share: float) -> Tensor:
    """Mean [N] of the highest share of the values of cells [N, S, S], of one at least."""
    flat = cells.flatten(1)
    return flat.topk(max(1, round(share * flat.shape[1])), dim=1).values.mean(dim=1)


@dataclass(frozen=True)
class Seen:
    """What one walk over images keeps of them: pooled features [N, C] and some patches [M, C] with their image [M]."""

    pooled: Rows
    patches: Tensor
    image: NDArray[np.intp]


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


class PatchBankMethod(Reference):
    extractor_kind = CellGrid
    # maps of a set of images are hundreds of megabytes
    keeps_on_disk = False

    def fit(self, normals: Images, anomalies: Images, ask: Ask) -> tuple[nn.Module, dict[str, float]]:
        section, seed = self._section, self.config.seed
        known, labelled = self._look(normals, section.candidates, ask), self._look(anomalies, 0, ask)
        logistic = bool(len(labelled.pooled)) and section.logistic != 0
        held = cross_fit(known.pooled, labelled.pooled, 1, logistic, seed, ask)
        folds = folds_of(len(normals), seed, "normal"), folds_of(len(anomalies), seed, "anomalous")
        bank, coreset = self._bank(known, folds[0], ask)
        some = np.sort(torch.randperm(len(normals), generator=stream(seed, "held")).numpy()[:MOST_HELD])
        held = held.with_distances(
            some,
            self._held_out(bank, coreset, normals[some], folds[0][some], ask),
            self._held_out(bank, coreset, anomalies, folds[1], ask),
        )
        push, weight = choose_weights(held, section.push, section.logistic)
        density, _ = fit_gaussian(known.pooled)
        along = directions(density, known.pooled, labelled.pooled, weight > 0)
        combination = Combination.of(held, along, push, weight)
        figures = {"bank_patches": float(len(bank.patches)), **combination.figures}
        return BankScore(bank, density, combination, section.top_k), figures

    def blank(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        section, channels = self._section, self.extractor.channels
        bank = Bank(channels, len(tensors["bank.patches"]), section.neighbours, section.neighbourhood)
        density = Gaussian(channels, tensors["density.axes"].shape[2], 1)
        return BankScore(bank, density, Combination(channels), section.top_k)

    def cells(self, images: np.ndarray) -> Maps | None:
        """The distance of each cell to the bank."""
        model, size = self.fitted, images.shape[1]
        assert isinstance(model, BankScore)
        parts = [np.zeros((0, size, size), np.float32)]
        with torch.inference_mode():
            for features in self.walk(images):
                for one in features:
                    cells = model.bank(torch.from_numpy(one[None]).to(self.device)).float()
                    parts.append(raised(cells, size).cpu().numpy())
        return np.concatenate(parts)

    def _look(self, images: Images, candidates: int, ask: Ask) -> Seen:
        """candidates: patches that are drawn in all, as many of each image."""
        size, seed = self._section.neighbourhood, self.config.seed
        pooled, patches, places = [], [], []
        each = -(-candidates // max(1, len(images)))
        for number, one in enumerate(one for part in self.walk(images, ask) for one in part):
            maps = torch.from_numpy(one[None])
            pooled.append(self.extractor.pooled(maps).double().numpy())
            cells = patch_cells(maps, size)[0]
            drawn = torch.randperm(len(cells), generator=stream(seed, "patches", number))[:each]
            patches.append(cells[drawn])
            places += [number] * len(drawn)
        if not patches:
            channels = self.extractor.channels
            return Seen(np.zeros((0, channels)), torch.zeros(0, channels), np.zeros(0, np.intp))
        return Seen(np.concatenate(pooled), torch.cat(patches), np.array(places, np.intp))

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

    def _held_out(self, bank: Bank, coreset: Coreset, images: Images, at: NDArray[np.intp], ask: Ask) -> Rows:
        """Distances [N] of images to the patches of other folds than theirs."""
        others = [coreset.first(other for other in range(FOLDS) if other != fold) for fold in range(FOLDS)]
        squares = [patches.square().sum(dim=1) for patches in others]
        found = []
        with torch.inference_mode():
            for number, one in enumerate(one for features in self.walk(images, ask) for one in features):
                fold = at[number]
                cells = bank.distances(torch.from_numpy(one[None]).to(self.device), others[fold], squares[fold])
                found.append(float(highest(cells, self._section.top_k)))
        return np.array(found, np.float64)

    @property
    def _section(self) -> PatchBankSection:
        section = self.config.method
        assert isinstance(section, PatchBankSection)
        return section
