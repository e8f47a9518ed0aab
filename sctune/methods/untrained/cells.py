"""Methods that compare the cells of a map with normal ones: an image's distance is the mean of its highest cells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.data.batches import stream
from sctune.methods.base import Maps, Scores, TaskImages
from sctune.methods.density import Gaussian, Rows, fit_gaussian
from sctune.methods.untrained.combination import Combination
from sctune.methods.untrained.crossfit import FOLDS, Weight, choose_weights, cross_fit, folds_of, moments
from sctune.methods.untrained.extractor import CellGrid
from sctune.methods.untrained.labelled import directions
from sctune.methods.untrained.reference import Ask, Images, Reference, raised
from sctune.methods.untrained.store import CELLS

MOST_HELD = 200
"""Normals whose held-out distances are taken: enough for a mean and a standard deviation."""

Distances = Callable[[Tensor], Tensor]
"""Maps [N, C, S, S] -> the distance [N, S, S] of each cell to normal ones, in float64."""


class CellScore(nn.Module):
    """Maps [N, C, S, S] -> scores [N] in float64. top_k: share of the highest cells that make the distance.

    bank: a module that is `Distances`; density: of pooled features, in which push and logistic have their directions.
    """

    def __init__(self, bank: nn.Module, density: Gaussian, combination: Combination, top_k: float) -> None:
        super().__init__()
        self.bank = bank
        self.density = density
        self.combination = combination
        self.top_k = top_k

    def forward(self, maps: Tensor) -> Tensor:
        return self.by_share(maps, [self.top_k])[0]

    def by_share(self, maps: Tensor, shares: Sequence[float]) -> Tensor:
        """Scores [K, N] with each of K shares of the highest cells."""
        away = self.density(maps.mean(dim=(2, 3)))
        cells = self.bank(maps)
        return torch.stack([self.combination(highest(cells, share), away) for share in shares])


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
    """What one walk over images keeps of them: pooled features [N, C], and M patches of all images.

    patches [M, C], with their image [M] and their place in its map [M]; totals [F, S * S, C]: sums of the maps of the
    images of each fold, in float64, of no fold where they are not asked for.
    """

    pooled: Rows
    patches: Tensor
    image: NDArray[np.intp]
    place: Tensor
    totals: Tensor

    def first(self, count: int, seed: int) -> Seen:
        """With so many of the patches at most, drawn by the seed."""
        if len(self.patches) <= count:
            return self
        drawn = torch.randperm(len(self.patches), generator=stream(seed, "cells"))[:count].sort().values
        return replace(self, patches=self.patches[drawn], image=self.image[drawn.numpy()], place=self.place[drawn])


@dataclass(frozen=True)
class Looking:
    """What is kept of images: patches in all, drawn by the seed, as many of each image (one at least where there are
    any), each the mean of a neighbourhood; sums of the maps of so many folds.
    """

    candidates: int
    neighbourhood: int
    seed: int
    folds: int = 0


def look(features: Iterable[NDArray[np.float32]], folds: NDArray[np.intp], how: Looking) -> Seen | None:
    """features: maps [n, C, S, S] of a few images at a time; folds [N]: of each image; None where there are none."""
    pooled, patches, image, place = [], [], [], []
    each, totals = -(-how.candidates // max(1, len(folds))), torch.zeros(0)
    for number, one in enumerate(one for part in features for one in part):
        maps = torch.from_numpy(one[None])
        pooled.append(CellGrid.pooled(maps).double().numpy())
        cells = patch_cells(maps, how.neighbourhood)[0]
        drawn = torch.randperm(len(cells), generator=stream(how.seed, "patches", number))[:each]
        patches.append(cells[drawn])
        place.append(drawn)
        image += [number] * len(drawn)
        if not number:
            totals = torch.zeros(how.folds, *cells.shape, dtype=torch.float64)
        if how.folds:
            totals[folds[number]] += cells
    if not patches:
        return None
    return Seen(np.concatenate(pooled), torch.cat(patches), np.array(image, np.intp), torch.cat(place), totals)


class CellMethod(Reference):
    """A bank of some kind over the cells of the maps of several depths on one grid, scaled by cross-fitting."""

    extractor_kind = CellGrid
    place = CELLS
    sums_maps: ClassVar[bool]
    """Whether `fit_cells` asks for sums of maps: of five folds, at 20 x 20 cells of 1000 channels 16 MB."""

    def keeps(self, images: TaskImages, size: int) -> bool:
        # a GPU makes maps in less time than a disk gives them back
        return self.device.type == "cpu" and super().keeps(images, size)

    def fit(self, normals: Images, anomalies: Images, ask: Ask) -> tuple[nn.Module, dict[str, float]]:
        seed = self.config.seed
        folds = folds_of(len(normals), seed, "normal"), folds_of(len(anomalies), seed, "anomalous")
        how = Looking(self.candidates, self.neighbourhood, seed, FOLDS * self.sums_maps)
        known = look(self.walk(normals, ask), folds[0], how)
        assert known is not None
        labelled = look(self.walk(anomalies, ask), folds[1], Looking(0, self.neighbourhood, seed))
        pooled = np.zeros((0, known.pooled.shape[1])) if labelled is None else labelled.pooled
        held = cross_fit(known.pooled, pooled, 1, bool(len(pooled)) and self.weights[1] != 0, seed, ask)
        bank, others, figures = self.fit_cells(known, folds[0], ask)
        some = np.sort(torch.randperm(len(normals), generator=stream(seed, "held")).numpy()[:MOST_HELD])
        held = held.with_distances(
            some,
            self._held_out(others, normals[some], folds[0][some], ask),
            self._held_out(others, anomalies, folds[1], ask),
        )
        push, weight = choose_weights(held, *self.weights)
        density, _ = fit_gaussian(known.pooled)
        along = directions(density, known.pooled, pooled, weight > 0)
        combination = Combination.of(moments(held.scale), along, push, weight)
        return CellScore(bank, density, combination, self.top_k), {**figures, **combination.figures}

    @abstractmethod
    def fit_cells(
        self, known: Seen, folds: NDArray[np.intp], ask: Ask
    ) -> tuple[nn.Module, Sequence[Distances], dict[str, float]]:
        """The bank, for each of FOLDS one that knows the normals of the others alone, and figures about it."""

    @property
    @abstractmethod
    def candidates(self) -> int:
        """Patches of normals that a bank is made from."""

    @property
    @abstractmethod
    def neighbourhood(self) -> int:
        """Cells a side that a patch is the mean of."""

    @property
    @abstractmethod
    def top_k(self) -> float:
        """Share of the highest cells that make the distance."""

    @property
    @abstractmethod
    def weights(self) -> tuple[Weight, Weight]:
        """Of push and logistic."""

    def by_share(self, images: np.ndarray, shares: Sequence[float]) -> Scores:
        """Scores [K, N] of uint8 images [N, S, S, 3] with each of K shares of the highest cells."""
        model = self.fitted
        assert isinstance(model, CellScore)
        parts = [np.zeros((len(shares), 0))]
        with torch.inference_mode():
            for one in (one for part in self.walk(images) for one in part):
                scores = model.by_share(torch.from_numpy(one[None]).to(self.device), shares)
                parts.append(scores.double().cpu().numpy())
        return np.concatenate(parts, axis=1)

    def cells(self, images: np.ndarray) -> Maps | None:
        """The distance of each cell."""
        model, size = self.fitted, images.shape[1]
        assert isinstance(model, CellScore)
        parts = [np.zeros((0, size, size), np.float32)]
        with torch.inference_mode():
            for features in self.walk(images):
                for one in features:
                    cells = model.bank(torch.from_numpy(one[None]).to(self.device)).float()
                    parts.append(raised(cells, size).cpu().numpy())
        return np.concatenate(parts)

    def _held_out(self, others: Sequence[Distances], images: Images, folds: NDArray[np.intp], ask: Ask) -> Rows:
        """Distances [N] of images to the patches of other folds than theirs."""
        found = []
        with torch.inference_mode():
            for number, one in enumerate(one for features in self.walk(images, ask) for one in features):
                cells = others[folds[number]](torch.from_numpy(one[None]).to(self.device))
                found.append(float(highest(cells, self.top_k)))
        return np.array(found, np.float64)
