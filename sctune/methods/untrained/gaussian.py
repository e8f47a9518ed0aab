"""Mahalanobis distance of an image's pooled features, with what labelled anomalies add (Rippel et al., ICPR 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sctune.data.batches import stream
from sctune.errors import DataError
from sctune.methods.base import Maps, TaskImages
from sctune.methods.density import Gaussian, Rows, distances, fit_gaussian
from sctune.methods.pixels import to_pixels
from sctune.methods.untrained.combination import Combination
from sctune.methods.untrained.crossfit import FOLDS, choose_weights, cross_fit, moments
from sctune.methods.untrained.entry import GaussianSection
from sctune.methods.untrained.extractor import PooledMaps
from sctune.methods.untrained.labelled import directions
from sctune.methods.untrained.reference import Ask, Images, Reference, raised
from sctune.methods.untrained.store import POOLED

MOST_TYPICAL = 64
"""Normals whose mean maps are kept for heat maps."""


class TypicalMaps(nn.Module):
    """The mean map [C_i, S_i, S_i] of normal images for each map of the backbone; heat maps compare with it."""

    def __init__(self, maps: Sequence[Tensor]) -> None:
        super().__init__()
        for number, one in enumerate(maps):
            self.register_buffer(f"map{number}", one.clone())

    def maps(self) -> list[Tensor]:
        return list(self.buffers())


class GaussianScore(nn.Module):
    """Pooled features [N, 2, C] -> scores [N] in float64. statistics: leading ones of the two that are looked at."""

    def __init__(self, density: Gaussian, combination: Combination, typical: TypicalMaps, statistics: int) -> None:
        super().__init__()
        self.density = density
        self.combination = combination
        self.typical = typical
        self.statistics = statistics

    def forward(self, features: Tensor) -> Tensor:
        return self.of_rows(features[:, : self.statistics].flatten(1))

    def of_rows(self, rows: Tensor) -> Tensor:
        """Scores [N] of feature rows [N, D]."""
        away = self.density(rows)
        scores: Tensor = self.combination(distances(away), away)
        return scores


class GaussianMethod(Reference):
    extractor_kind = PooledMaps
    place = POOLED

    def prepare(self, images: TaskImages) -> None:
        super().prepare(images)
        count, components = min(len(images.normals), self._most), self._section.components
        # as few as a cross-fit has
        if count - -(-count // FOLDS) <= components:
            raise DataError(
                f"{count} normal images are too few for {components} components, of which a fifth is held out; use "
                "fewer, or add images"
            )

    def fit(self, normals: Images, anomalies: Images, ask: Ask) -> tuple[nn.Module, dict[str, float]]:
        section, seed = self._section, self.config.seed
        known, labelled = self._rows(normals, ask), self._rows(anomalies, ask)
        labelled = labelled.reshape(len(labelled), known.shape[1])
        logistic = bool(len(labelled)) and section.logistic != 0
        held = cross_fit(known, labelled, section.components, logistic, seed, ask)
        push, weight = choose_weights(held, section.push, section.logistic)
        density, shrinkage = fit_gaussian(known, section.components, seed)
        along = directions(density, known, labelled, weight > 0)
        combination = Combination.of(moments(held.scale), along, push, weight)
        figures = {"shrinkage": shrinkage, **combination.figures}
        return GaussianScore(density, combination, self._typical(normals, ask), self._statistics), figures

    def blank(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        return blank_pooled(tensors, self.extractor.channels, self._statistics)

    def cells(self, images: np.ndarray) -> Maps | None:
        """How much each cell adds to the score, to first order, by being other than its place is in normal images.

        The score is that of pooled features, so by its gradient it is a sum over cells: the mean of a map over its
        cells is the image's score.
        """
        parts = [self._cells(image[None]) for image in images]
        return np.concatenate(parts) if parts else np.zeros(images.shape[:3], np.float32)

    def _cells(self, images: np.ndarray) -> Maps:
        features = torch.from_numpy(self._features(images)).to(self.device)
        model = self.fitted
        assert isinstance(model, GaussianScore)
        return score_shares(model, self._maps(images), features, images.shape[1])

    def _maps(self, images: np.ndarray) -> list[Tensor]:
        with torch.no_grad():
            return self.extractor.maps(to_pixels(images, self.device, self.config.runtime.channels_last))

    def _typical(self, normals: Images, ask: Ask) -> TypicalMaps:
        return typical_maps(normals, self._maps, self.config.seed, ask)

    def _rows(self, images: Images, ask: Ask) -> Rows:
        parts = [part[:, : self._statistics].reshape(len(part), -1) for part in self.walk(images, ask)]
        return np.concatenate(parts).astype(np.float64) if parts else np.zeros((0, 0))

    @property
    def _section(self) -> GaussianSection:
        section = self.config.method
        assert isinstance(section, GaussianSection)
        return section

    @property
    def _statistics(self) -> int:
        return {"mean": 1, "mean_sd": 2}[self._section.statistics]


def blank_pooled(tensors: Mapping[str, Tensor], channels: int, statistics: int) -> GaussianScore:
    """A score of pooled features for the tensors of a state; raises LookupError where one is missing."""
    dimension = statistics * channels
    components, _, rank = tensors["density.axes"].shape
    numbers = range(sum(name.startswith("typical.map") for name in tensors))
    typical = TypicalMaps([torch.zeros_like(tensors[f"typical.map{number}"]) for number in numbers])
    return GaussianScore(Gaussian(dimension, rank, components), Combination(dimension), typical, statistics)


def typical_maps(normals: Images, maps_of: Callable[[np.ndarray], list[Tensor]], seed: int, ask: Ask) -> TypicalMaps:
    """Of some normal images, drawn by the seed; maps_of: uint8 images [N, S, S, 3] -> maps [N, C_i, S_i, S_i]."""
    order = torch.randperm(len(normals), generator=stream(seed, "typical")).numpy()
    some = np.sort(order[:MOST_TYPICAL])
    totals: list[Tensor] = []
    for place in some:
        ask()
        maps = [one[0].double() for one in maps_of(normals[np.array([place])])]
        totals = [total + one for total, one in zip(totals, maps, strict=True)] if totals else maps
    return TypicalMaps([(total / len(some)).float() for total in totals])


def score_shares(model: GaussianScore, maps: list[Tensor], features: Tensor, size: int) -> Maps:
    """What the cells at each pixel add to the score [N, size, size]. features [N, 2, C]: of maps [N, C_i, S_i, S_i]."""
    with torch.enable_grad():
        rows = features.double().requires_grad_()
        score = model(rows)
        (gradient,) = torch.autograd.grad(score.sum(), rows)
    total = score.detach()[:, None, None].expand(-1, size, size).float()
    # a network of timm gives all of its maps as one
    sizes = [one.shape[1] for one in maps]
    by_map = (part.split(sizes, dim=2) for part in (gradient, features))
    for cells, typical, slope, pooled in zip(maps, model.typical.maps(), *by_map, strict=True):
        total = total + raised(_shares(cells, typical, slope.float(), pooled), size)
    found: Maps = total.cpu().numpy()
    return found


def _shares(cells: Tensor, typical: Tensor, slope: Tensor, pooled: Tensor) -> Tensor:
    """Cells [N, C, H, W] of one map -> what each adds to the score, more than their mean does: [N, H, W], mean 0.

    typical: the mean map of normals [C, H, W]. slope: gradient of the score by pooled features [N, 2, C], means and
    standard deviations; one of these is the mean over cells of squared differences over itself.
    """
    mean, deviation = (part[:, :, None, None] for part in pooled.unbind(dim=1))
    first, second = (part[:, :, None, None] for part in slope.unbind(dim=1))
    own = typical - typical.mean(dim=(1, 2), keepdim=True)
    away = cells - mean
    spread = away.square() / deviation.clamp_min(1e-12) - deviation
    return (first * (away - own) + second * spread).sum(dim=1)
