"""Metrics of many resamples at once: image i counts as often as it was drawn. Ties (`TIE`) are as in image_level.

Arguments throughout: labels [N] in {0, 1}, scores [N], counts [B, N] how often each image is drawn in each resample.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sctune.metrics.ties import with_ties

Array = np.ndarray

RESAMPLES = 500
"""Of the standard errors by bootstrap, within each class."""

_SEED = 0


def within_classes(labels: Array) -> Array:
    """Counts [RESAMPLES, N] of images drawn with replacement from those of their own class; the same at every call."""
    anomalous = np.asarray(labels).astype(bool)
    counts = np.empty((RESAMPLES, anomalous.size), np.int32)
    normals, anomalies = _drawn(int((~anomalous).sum()), int(anomalous.sum()))
    counts[:, ~anomalous], counts[:, anomalous] = normals, anomalies
    return counts


@lru_cache(maxsize=8)
def _drawn(normal: int, anomalous: int) -> tuple[Array, Array]:
    """How often each image of a class is drawn: [RESAMPLES, normal] and [RESAMPLES, anomalous]."""
    random = np.random.default_rng(_SEED)
    counts = [np.zeros((RESAMPLES, size), np.int32) for size in (normal, anomalous)]
    for row in range(RESAMPLES):
        for table in counts:
            size = table.shape[1]
            table[row] = np.bincount(random.integers(0, size, size), minlength=size)
    return counts[0], counts[1]


def weighted_auroc(labels: Array, scores: Array, counts: Array) -> Array:
    """AUROC [B]; NaN where a resample has no normal or no anomalous image."""
    scores = with_ties(scores)
    order = np.argsort(scores, kind="stable")
    sorted_scores, anomalous = scores[order], labels[order].astype(bool)
    starts = np.flatnonzero(np.append(True, np.diff(sorted_scores) != 0))
    weights = counts[:, order].astype(np.float64)
    positive = np.add.reduceat(np.where(anomalous, weights, 0.0), starts, axis=1)
    negative = np.add.reduceat(np.where(anomalous, 0.0, weights), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (positive * below).sum(axis=1) / pairs, np.nan)


def weighted_average_precision(labels: Array, scores: Array, counts: Array) -> Array:
    """Step-wise average precision [B]; every resample must hold an anomalous image."""
    positive, negative = _from_the_top(labels, scores, counts)
    hits = np.cumsum(positive, axis=1)
    called = hits + np.cumsum(negative, axis=1)
    precision = hits / np.maximum(called, 1.0)
    found: Array = (positive * precision).sum(axis=1) / hits[:, -1]
    return found


def weighted_false_alarms(labels: Array, scores: Array, counts: Array, recall: float) -> Array:
    """Share [B] of the normal images at or above the score from which on `recall` of the anomalous ones are found.

    Every resample must hold images of both classes.
    """
    positive, negative = _from_the_top(labels, scores, counts)
    hits, alarms = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
    # one part in 10**9 for what binary fractions leave over
    enough = hits >= recall * hits[:, -1:] - 1e-9
    place = np.argmax(enough, axis=1)
    found: Array = alarms[np.arange(len(alarms)), place] / alarms[:, -1]
    return found


def _from_the_top(labels: Array, scores: Array, counts: Array) -> tuple[Array, Array]:
    """Anomalous and normal images drawn at each distinct score, [B, K] each, the highest score first."""
    scores = with_ties(scores)
    order = np.argsort(-scores, kind="stable")
    anomalous = np.asarray(labels)[order].astype(bool)
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    weights = counts[:, order].astype(np.float64)
    positive = np.add.reduceat(np.where(anomalous, weights, 0.0), starts, axis=1)
    return positive, np.add.reduceat(np.where(anomalous, 0.0, weights), starts, axis=1)
