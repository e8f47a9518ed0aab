"""Features of images in two dimensions, and how far groups of them lie apart: pure functions of arrays."""

from __future__ import annotations

import numpy as np
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from sctune.errors import ConfigError, DataError

LEAST_POINTS = 3


def fitting_perplexity(count: int, perplexity: float) -> float:
    """The perplexity that `count` points can have: at most a third of a point's neighbours, 1 at least."""
    return min(perplexity, max(1.0, (count - 1) / 3))


def tsne(features: np.ndarray, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """Points [N, 2] of features [N, C] by t-SNE from their principal components; the same input, the same points.

    perplexity: number of neighbours that count, 1 at least; lowered where there are few points
    (`fitting_perplexity`). Raises DataError for fewer than 3 points, all points equal, or values that are no
    numbers; ConfigError for a perplexity below 1.
    """
    if not perplexity >= 1:
        raise ConfigError(f"perplexity {perplexity}: it must be 1 at least; 30 is usual")
    features = np.asarray(features, dtype=np.float32)
    if len(features) < LEAST_POINTS:
        raise DataError(f"t-SNE of {len(features)} images: {LEAST_POINTS} are needed at least; add images")
    if not np.isfinite(features).all():
        raise DataError("the features hold values that are no finite numbers, so there is no t-SNE of them")
    if np.ptp(features, axis=0).max() == 0:
        raise DataError(f"the features of all {len(features)} images are equal, so there is no t-SNE of them")
    fitted = TSNE(
        n_components=2,
        perplexity=fitting_perplexity(len(features), perplexity),
        init="pca",
        random_state=seed,
        n_jobs=1,
    )
    points: np.ndarray = fitted.fit_transform(features)
    return points


def silhouette(first: np.ndarray, second: np.ndarray) -> float | None:
    """Mean silhouette of two groups of features [N, C] and [M, C] in [-1, 1] (Rousseeuw 1987, Euclidean).

    1: compact and far apart; 0: they overlap; below 0: points lie closer to the other group. None where a group is
    empty, or both hold one point.
    """
    if not len(first) or not len(second) or len(first) + len(second) < LEAST_POINTS:
        return None
    labels = np.r_[np.zeros(len(first), int), np.ones(len(second), int)]
    return float(silhouette_score(np.concatenate([first, second]), labels))
