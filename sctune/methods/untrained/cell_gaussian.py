"""Mahalanobis distance of every cell of an image: one covariance of all cells, a mean for each place.

PaDiM (Defard et al., ICPR 2020) has a covariance for each place too: S * S * C * C numbers, 74 MB in double precision
for 20 x 20 cells of 152 channels, from as many rows as there are images. One for all takes 0.2 MB; what is left of
PaDiM is that a cell is compared with its own place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.methods.density import Gaussian, distances, fit_gaussian
from sctune.methods.untrained.cells import CellMethod, CellScore, Distances, Seen, patch_cells
from sctune.methods.untrained.combination import Combination
from sctune.methods.untrained.crossfit import FOLDS, Weight
from sctune.methods.untrained.entry import GaussianSection
from sctune.methods.untrained.reference import Ask

CANDIDATES = 16_000
"""Cells that the covariance is of, drawn by the seed: a bound of the memory."""
NEIGHBOURHOOD = 3
"""Cells a side that each is the mean of, as in a patch bank."""


class CellGaussian(nn.Module):
    """Maps [N, C, S, S] -> distance [N, S, S] of each cell, in float64. means [S * S, C]: of normal cells by place."""

    means: Tensor

    def __init__(self, means: Tensor, gaussian: Gaussian) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.gaussian = gaussian

    def forward(self, maps: Tensor) -> Tensor:
        away = patch_cells(maps, NEIGHBOURHOOD).double() - self.means
        found = distances(self.gaussian(away.flatten(0, 1)))
        return found.unflatten(0, (-1, *maps.shape[2:]))


def fit_cell_gaussian(
    known: Seen, folds: NDArray[np.intp], components: int, seed: int, without: int | None = None
) -> tuple[CellGaussian, float]:
    """The Gaussian of the cells of normal images, and how much it was shrunk; without: a fold that is left out.

    folds [N]: of each image. components: kinds of normal cells. Raises DataError as `fit_gaussian` does.
    """
    # one of each image at least was looked at, and there may be many
    known = known.first(CANDIDATES, seed)
    seen = folds != without
    totals = known.totals.sum(dim=0) if without is None else known.totals.sum(dim=0) - known.totals[without]
    means = totals / int(seen.sum())
    rows = torch.from_numpy(seen[known.image])
    patches = known.patches[rows].double()
    away = patches - means[known.place[rows]]
    gaussian, shrinkage = fit_gaussian(away.numpy(), components, seed, patches.abs().amax(dim=0).numpy())
    return CellGaussian(means, gaussian), shrinkage


def blank_cells(tensors: Mapping[str, Tensor], channels: int, top_k: float) -> CellScore:
    """A score of cells for the tensors of a state; raises LookupError where one is missing."""
    components, _, rank = tensors["bank.gaussian.axes"].shape
    means = torch.zeros(len(tensors["bank.means"]), channels, dtype=torch.float64)
    bank = CellGaussian(means, Gaussian(channels, rank, components))
    return CellScore(bank, Gaussian(channels, tensors["density.axes"].shape[2], 1), Combination(channels), top_k)


class CellGaussianMethod(CellMethod):
    sums_maps = True

    def fit_cells(
        self, known: Seen, folds: NDArray[np.intp], ask: Ask
    ) -> tuple[nn.Module, Sequence[Distances], dict[str, float]]:
        components, seed = self._section.components, self.config.seed
        others = []
        for fold in range(FOLDS):
            ask()
            others.append(fit_cell_gaussian(known, folds, components, seed, fold)[0].to(self.device))
        bank, shrinkage = fit_cell_gaussian(known, folds, components, seed)
        return bank, others, {"shrinkage": shrinkage}

    def blank(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        return blank_cells(tensors, self.extractor.channels, self.top_k)

    @property
    def candidates(self) -> int:
        return CANDIDATES

    @property
    def neighbourhood(self) -> int:
        return NEIGHBOURHOOD

    @property
    def top_k(self) -> float:
        return self._section.cell_share

    @property
    def weights(self) -> tuple[Weight, Weight]:
        return self._section.push, self._section.logistic

    @property
    def _section(self) -> GaussianSection:
        section = self.config.method
        assert isinstance(section, GaussianSection)
        return section
