"""How sure the objective of a trial is, and the difference between two, from their scores of the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sctune.metrics.objective import Objective

MIN_GAP = 2.0
"""A difference below this many standard errors is called not distinguishable."""


@dataclass(frozen=True)
class Gap:
    """Two trials on the same images: difference of their objectives and its standard error."""

    first: int
    second: int
    difference: float
    error: float

    @property
    def clear(self) -> bool:
        return abs(self.difference) >= MIN_GAP * self.error > 0


def has_scores(scores: Mapping[str, Sequence[float]], labels: Mapping[str, Sequence[int]]) -> bool:
    """Whether a trial's stored scores cover the scored images: an earlier sctune lost those of some resumed trials."""
    return all(len(scores.get(key, ())) == len(truth) for key, truth in labels.items())


Parts = list[tuple[float, list[int], list[float]]]


def _parts(scores: Mapping[str, Sequence[float]], labels: Mapping[str, Sequence[int]]) -> Parts:
    """Weight, labels and scores of each figure that the objective averages (train/selection.py)."""
    parts: Parts = []
    for key, truth in labels.items():
        real = list(scores[key])
        normal = [score for score, label in zip(real, truth, strict=True) if label == 0]
        makers = [list(values) for name, values in scores.items() if name.startswith(f"{key}:")]
        has_real = any(truth)
        shares = int(has_real) + int(bool(makers))
        if has_real:
            parts.append((1 / (shares * len(labels)), list(truth), real))
        parts += [
            (1 / (shares * len(makers) * len(labels)), [0] * len(normal) + [1] * len(made), normal + made)
            for made in makers
        ]
    return parts


def value_se(scores: Mapping[str, Sequence[float]], labels: Mapping[str, Sequence[int]], objective: Objective) -> float:
    """Standard error of a trial's objective; the figures that it averages are taken as independent."""
    parts = _parts(scores, labels)
    return math.sqrt(sum((weight * objective.standard_error(y, s)) ** 2 for weight, y, s in parts))


def compare(
    first: int,
    second: int,
    scores: Mapping[int, Mapping[str, Sequence[float]]],
    labels: Mapping[str, Sequence[int]],
    objective: Objective,
) -> Gap:
    """Paired difference of two trials' latest objectives with its standard error."""
    return Gap(first, second, *paired(scores[first], scores[second], labels, objective))


def paired(
    first: Mapping[str, Sequence[float]],
    second: Mapping[str, Sequence[float]],
    labels: Mapping[str, Sequence[int]],
    objective: Objective,
) -> tuple[float, float]:
    """The objective of the first scores minus that of the second ones, and its paired standard error.

    Both as stored: task key -> scores of the selection images, and `key:maker` -> those of pseudo anomalies.
    """
    pairs = [
        (weight, objective.difference(truth, a, b))
        for (weight, truth, a), (_, _, b) in zip(_parts(first, labels), _parts(second, labels), strict=True)
    ]
    difference = float(np.sum([weight * gap for weight, (gap, _) in pairs]))
    return difference, math.sqrt(sum((weight * error) ** 2 for weight, (_, error) in pairs))
