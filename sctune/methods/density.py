"""A Gaussian of feature vectors, or several: fitted once, then part of a network.

Vectors are standardised, their covariance is shrunk as Ledoit and Wolf (2004) have it, and whitened differences from a
centre are what everything else is made of: their length is the Mahalanobis distance.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.exceptions import ConvergenceWarning

# threadpoolctl's, which scikit-learn needs and looks for here itself
from sklearn.utils.parallel import ThreadpoolController
from torch import Tensor, nn

from sctune.errors import DataError

Rows = NDArray[np.float64]
"""Feature vectors [N, D]."""

LEAST_SPREAD = 1e-6
"""Smallest variance along any direction, as a share of the mean one: a shrinkage of nothing leaves no zero."""
ROUNDING = 1e-6
"""Of a feature in single precision, as a share of it: what spreads less holds nothing but the order of summation."""
POOLED_SHARE = 0.5
"""Of the covariance of all components in that of each one (Friedman 1989, regularised discriminant analysis)."""
STARTS = 4
"""Of k-means; the best is taken."""


class Gaussian(nn.Module):
    """Rows [N, D] -> whitened differences [N, D] from the nearest of K components, in float64.

    mean, scale [D]: what rows are standardised by; centres [K, D]: of the components, standardised; axes [K, D, R]:
    orthogonal directions that were seen, R at most the number of rows that were fitted; gains [K, R]: one over the
    standard deviation along each; bases [K]: the same along all directions that were not seen.
    """

    mean: Tensor
    scale: Tensor
    centres: Tensor
    axes: Tensor
    gains: Tensor
    bases: Tensor

    def __init__(self, dimension: int, rank: int, components: int) -> None:
        super().__init__()
        shapes = {
            "mean": (dimension,),
            "scale": (dimension,),
            "centres": (components, dimension),
            "axes": (components, dimension, rank),
            "gains": (components, rank),
            "bases": (components,),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def forward(self, rows: Tensor) -> Tensor:
        standard = (rows.double() - self.mean) / self.scale
        nearest = self._whitened(standard, 0)
        for component in range(1, len(self.centres)):
            other = self._whitened(standard, component)
            closer = distances(other) < distances(nearest)
            nearest = torch.where(closer[:, None], other, nearest)
        return nearest

    def _whitened(self, standard: Tensor, component: int) -> Tensor:
        """By the symmetric root of the precision, so that axes keep their meaning from one component to another."""
        away, axes, base = standard - self.centres[component], self.axes[component], self.bases[component]
        return away * base + (away @ axes * (self.gains[component] - base)) @ axes.T


def distances(differences: Tensor) -> Tensor:
    """Mahalanobis distances [N] from whitened differences [N, D]."""
    return differences.square().sum(dim=1).sqrt()


@dataclass(frozen=True)
class Shrunk:
    """A covariance as a sum: rows.T @ rows of weighted rows [N, D], and `base` on the diagonal.

    shrinkage: towards the mean variance, in [0, 1].
    """

    rows: Rows
    base: float
    shrinkage: float

    @classmethod
    def of(cls, away: Rows) -> Shrunk:
        """Ledoit and Wolf's of differences [N, D] from a centre."""
        amount = float(ledoit_wolf_shrinkage(away, assume_centered=True))
        average = float(np.square(away).mean())
        return cls(away * np.sqrt((1 - amount) / len(away)), amount * average, amount)

    def mixed(self, other: Shrunk, share: float) -> Shrunk:
        """With a share of another one."""
        rows = np.concatenate([self.rows * np.sqrt(1 - share), other.rows * np.sqrt(share)])
        return Shrunk(rows, (1 - share) * self.base + share * other.base, self.shrinkage)

    def whitening(self) -> tuple[Rows, Rows, float]:
        """Axes [D, R], gains [R] and base; by the smaller of the two products of the rows."""
        count, dimension = self.rows.shape
        least = LEAST_SPREAD * (self.base + float(np.square(self.rows).sum()) / dimension)
        if dimension <= count:
            spread, axes = np.linalg.eigh(self.rows.T @ self.rows)
        else:
            spread, left = np.linalg.eigh(self.rows @ self.rows.T)
            seen = spread > 1e-3 * least
            spread, left = spread[seen], left[:, seen]
            axes = self.rows.T @ left / np.sqrt(spread)
        return axes, 1 / np.sqrt(np.maximum(spread + self.base, least)), float(1 / np.sqrt(max(self.base, least)))


def fit_gaussian(
    rows: Rows, components: int = 1, seed: int = 0, magnitude: Rows | None = None
) -> tuple[Gaussian, float]:
    """The Gaussian of rows [N, D], and how much its covariance was shrunk, in [0, 1].

    components: kinds of normal, found by k-means (seed) on standardised rows. The covariance of each is half its own
    and half that of all; a single one has its own. magnitude [D]: the largest value of each feature in single
    precision, where rows are differences of such. Raises DataError for fewer rows than components, or rows that are all
    alike.
    """
    if len(rows) <= components:
        raise DataError(f"{len(rows)} normal images are too few for {components} components; use fewer, or add images")
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    largest = np.abs(rows).max(axis=0) if magnitude is None else magnitude
    flat = scale <= ROUNDING * largest
    if flat.all():
        raise DataError(f"the features of all {len(rows)} normal images are equal, so they tell nothing; check them")
    # of any size, so that its rounding stays far below the spread of the others
    scale[flat] = np.maximum(largest[flat], 1.0)
    standard = (rows - mean) / scale
    centres, member = _clusters(standard, components, seed)
    away = standard - centres[member]
    pooled = Shrunk.of(away)
    parts = [_own(away[member == number], pooled) for number in range(components)] if components > 1 else [pooled]
    return _assembled(mean, scale, centres, [part.whitening() for part in parts]), pooled.shrinkage


def _own(away: Rows, pooled: Shrunk) -> Shrunk:
    return Shrunk.of(away).mixed(pooled, POOLED_SHARE) if len(away) > 1 else pooled


def _clusters(rows: Rows, components: int, seed: int) -> tuple[Rows, NDArray[np.intp]]:
    """Centres [K, D], and the one of each row [N]."""
    if components == 1:
        return rows.mean(axis=0, keepdims=True), np.zeros(len(rows), np.intp)
    with warnings.catch_warnings():
        # fewer distinct rows than components: centres that coincide do no harm
        warnings.simplefilter("ignore", ConvergenceWarning)
        # threads add up in the order in which they end: other last bits, and now and then other clusters
        with ThreadpoolController().limit(limits=1, user_api="openmp"):
            found = KMeans(components, n_init=STARTS, random_state=seed).fit(rows)
    return np.asarray(found.cluster_centers_), found.labels_.astype(np.intp)


def _assembled(mean: Rows, scale: Rows, centres: Rows, parts: Sequence[tuple[Rows, Rows, float]]) -> Gaussian:
    found = Gaussian(len(mean), max(len(gains) for _, gains, _ in parts), len(parts))
    for name, value in (("mean", mean), ("scale", scale), ("centres", centres)):
        found.get_buffer(name).copy_(torch.from_numpy(value))
    for number, (axes, gains, base) in enumerate(parts):
        # what is missing to the common rank are axes of length 0
        found.axes[number, :, : len(gains)] = torch.from_numpy(axes)
        found.gains[number, : len(gains)] = torch.from_numpy(gains)
        found.bases[number] = base
    return found
