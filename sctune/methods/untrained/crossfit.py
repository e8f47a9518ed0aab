"""Scales and weights from images that were held out of the fit: a density knows the images that it was fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sctune.data.batches import stream
from sctune.methods.density import Gaussian, Rows, fit_gaussian
from sctune.methods.untrained.labelled import differences, directions
from sctune.metrics.delong import Placements

FOLDS = 5
LEAST_ANOMALIES = 20
"""Fewer choose no weights: ten, drawn again and again from ELPV's, chose worse ones than USUAL, not better."""

SURE = 2.0
"""Standard errors by which other weights must be better."""

PUSHES = (0.0, 0.25, 0.5, 1.0)
LOGISTICS = (0.0, 0.25, 0.5, 1.0)
USUAL = (0.5, 0.0)
"""Weights of push and logistic where the anomalies do not say otherwise."""
MANY_ANOMALIES = 80
USUAL_OF_MANY = (0.25, 0.5)
"""As USUAL, of so many: what a regression learns of them no longer hangs on which ones they are. On ELPV's development
images, partitions 0 to 4, these were better than what cross-validation beside USUAL had chosen: by .006 (standard error
.002) of 80, .008 (.002) of 120; of 40 by .002 (.002), of 20 worse by as much."""

LEAST_SHARE = 0.5
"""Least deviation of few held-out terms, as a share of that of fitted ones."""

Weight = float | Literal["auto"]


@dataclass(frozen=True)
class HeldOut:
    """Terms (distance, push, logistic) of images under fits that lack them.

    scale [N, 3]: normals, with directions from all anomalies. normals [N, 3] and anomalies [A, 3]: with directions
    that lack the anomalies too that are told; no rows where these are too few to be left out.
    """

    scale: Rows
    normals: Rows
    anomalies: Rows

    def with_distances(self, rows: NDArray[np.intp], normals: Rows, anomalies: Rows) -> HeldOut:
        """Some rows of the normals, with other distances [n] of these and [A] of the held-out anomalies."""
        left = bool(len(self.anomalies))
        return HeldOut(
            _with_distance(self.scale[rows], normals),
            _with_distance(self.normals[rows], normals) if left else self.normals,
            _with_distance(self.anomalies, anomalies) if left else self.anomalies,
        )


def _with_distance(part: Rows, distance: Rows) -> Rows:
    return np.column_stack([distance, part[:, 1:]])


def folds_of(count: int, seed: int, name: str, folds: int = FOLDS) -> NDArray[np.intp]:
    """The fold [count] of each item, of nearly equal size, by the seed."""
    order = torch.randperm(count, generator=stream(seed, "fold", name)).numpy()
    found = np.empty(count, np.intp)
    found[order] = np.arange(count) % folds
    return found


def cross_fit(
    normals: Rows, anomalies: Rows, components: int, logistic: bool, seed: int, ask: Callable[[], None] = lambda: None
) -> HeldOut:
    """Held-out terms of feature rows [N, D] and [A, D]; every fold is fitted without its normals.

    ask: called before each; may raise. Raises DataError as `fit_gaussian` does.
    """
    at = folds_of(len(normals), seed, "normal")
    scale = np.zeros((len(normals), 3))
    chooses = len(anomalies) >= LEAST_ANOMALIES
    other = folds_of(len(anomalies), seed, "anomalous")
    apart, left = np.zeros((len(normals) * chooses, 3)), np.zeros((len(anomalies) * chooses, 3))
    for fold in range(FOLDS):
        ask()
        held, seen = normals[at == fold], normals[at != fold]
        density, _ = fit_gaussian(seen, components, seed)
        scale[at == fold] = _terms(density, held, directions(density, seen, anomalies, logistic))
        if chooses:
            along = directions(density, seen, anomalies[other != fold], logistic)
            apart[at == fold] = _terms(density, held, along)
            left[other == fold] = _terms(density, anomalies[other == fold], along)
    return HeldOut(scale, apart, left)


def moments(scale: Rows) -> tuple[Rows, Rows]:
    """Means and standard deviations [3] of held-out normals' terms [N, 3]; 1 for a deviation of nothing."""
    return scale.mean(axis=0), _some(scale.std(axis=0))


def few_moments(scale: Rows, fitted: Rows) -> tuple[Rows, Rows]:
    """As `moments`, of few held-out normals: by chance they may lie close together.

    fitted [M, 3]: terms of normals that were fitted, which spread less; the floor is a share of their deviation.
    """
    floor = LEAST_SHARE * fitted.std(axis=0, ddof=1)
    return scale.mean(axis=0), _some(np.maximum(scale.std(axis=0, ddof=1), floor))


def _some(deviations: Rows) -> Rows:
    return np.where(deviations > 0, deviations, 1.0)


def choose_weights(held: HeldOut, push: Weight, logistic: Weight) -> tuple[float, float]:
    """Weights of push and logistic; a number stands.

    `auto`: the best AUROC of left-out anomalies against held-out normals, where it is better than that of USUAL by
    more than SURE paired standard errors; else USUAL, or USUAL_OF_MANY where both are `auto`.
    """
    many = push == logistic == "auto" and len(held.anomalies) >= MANY_ANOMALIES
    values = USUAL_OF_MANY if many else USUAL
    usual = tuple(given if given != "auto" else value for given, value in zip((push, logistic), values, strict=True))
    first = float(usual[0]), float(usual[1])
    if "auto" not in (push, logistic) or not len(held.anomalies):
        return first
    means, deviations = moments(held.normals)
    rows = (np.concatenate([held.normals, held.anomalies]) - means) / deviations
    labels = np.r_[np.zeros(len(held.normals), int), np.ones(len(held.anomalies), int)]
    tried = [
        (one, other)
        for one in (PUSHES if push == "auto" else (first[0],))
        for other in (LOGISTICS if logistic == "auto" else (first[1],))
    ]
    placed = {pair: Placements.of(labels, rows @ np.array([1.0, *pair])) for pair in (first, *tried)}
    best = max(placed, key=lambda pair: placed[pair].auroc)
    gain, error = placed[best].difference(placed[first])
    return best if gain > SURE * error else first


def _terms(density: Gaussian, rows: Rows, along: Rows) -> Rows:
    away = differences(density, rows)
    return np.column_stack([np.linalg.norm(away, axis=1), away @ along])
