"""Decision thresholds and the rates at them: an image is called anomalous where its score is above the threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from sctune.errors import ConfigError, DataError, NonFiniteError

CONFIDENCE = 0.95
DEFAULT_RATE = 0.01
"""Wanted share of normal images that are called anomalous."""

Method = Literal["conformal", "best_f1", "given"]


@dataclass(frozen=True)
class Rate:
    """A share in [0, 1] of images with its exact 95 % interval (Clopper-Pearson)."""

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.count / self.total

    def __str__(self) -> str:
        return f"{self.count} of {self.total} ({100 * self.value:.1f} %, {100 * self.low:.1f} to {100 * self.high:.1f})"


def rate(count: int, total: int) -> Rate:
    """Raises DataError for no image at all."""
    if total < 1:
        raise DataError("a rate of no images does not exist; give some")
    interval = stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="exact")
    return Rate(count, total, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Threshold:
    """value: scores above it are anomalous. normals, anomalies: how many images it was made from.

    conformal: `wanted` false-alarm rate, and the `reached` one that holds for a new normal image on average over
    calibration sets: (n + 1 - k) / (n + 1) for the k-th lowest of n scores; bound: with 95 % confidence the rate of
    this very threshold is no higher. f1: of best_f1 on its own images.
    """

    value: float
    method: Method
    normals: int = 0
    anomalies: int = 0
    wanted: float | None = None
    reached: float | None = None
    bound: float | None = None
    f1: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Threshold:
        """Raises ValueError for something else than what `to_dict` gives."""
        try:
            made = Threshold(**content)
        except TypeError as problem:
            raise ValueError(f"no threshold: {problem}") from None
        if not isinstance(made.value, int | float) or not math.isfinite(made.value):
            raise ValueError(f"a threshold of {made.value!r}")
        return made

    @property
    def is_reached(self) -> bool:
        """Whether the wanted rate is what the calibration images can promise."""
        return self.wanted is None or self.reached is None or self.reached <= self.wanted

    def anomalous(self, scores: ArrayLike) -> np.ndarray:
        """Booleans [N] of scores [N]."""
        decided: np.ndarray = np.asarray(scores, dtype=np.float64) > self.value
        return decided

    def line(self) -> str:
        """What it is, in words."""
        if self.method == "given":
            return f"threshold {self.value:.4f}, given"
        if self.method == "best_f1":
            return (
                f"threshold {self.value:.4f}: best F1 ({self.f1:.3f}) on {self.normals} normal and {self.anomalies} "
                "anomalous held-out images"
            )
        assert self.reached is not None and self.bound is not None and self.wanted is not None
        kept = (
            f"false alarms {100 * self.reached:.2g} % of normal images on average, at most {100 * self.bound:.2g} % "
            f"with {100 * CONFIDENCE:.0f} % confidence, from {self.normals} calibration images"
        )
        if self.is_reached:
            return f"threshold {self.value:.4f}: {kept}"
        needed = math.ceil(1 / self.wanted) - 1
        return (
            f"threshold {self.value:.4f}: {kept}; {100 * self.wanted:.2g} % was wanted, which takes {needed} "
            "calibration images at least (data.calibration_share)"
        )


def check_rate(wanted: float) -> None:
    """Raises ConfigError for a false-alarm rate outside (0, 1)."""
    if not 0 < wanted < 1:
        raise ConfigError(f"a false-alarm rate of {wanted:g}: it must lie between 0 and 1, for example 0.01")


def conformal_threshold(scores: ArrayLike, wanted: float = DEFAULT_RATE) -> Threshold:
    """Split-conformal quantile of the scores [N] of normal images that took part in no fit.

    With k = ceil((n + 1)(1 - wanted)), the k-th lowest score. Where n is too small for that, the highest score, which
    reaches 1 / (n + 1). Raises ConfigError for a rate outside (0, 1), DataError for no scores, NonFiniteError.
    """
    check_rate(wanted)
    ordered = np.sort(_finite(scores))
    count = len(ordered)
    if count == 0:
        raise DataError("no calibration images: a threshold for a false-alarm rate needs normal ones")
    # one part in 10**9 for what binary fractions leave over
    rank = min(math.ceil((count + 1) * (1 - wanted) - 1e-9), count)
    above = count + 1 - rank
    return Threshold(
        value=float(ordered[rank - 1]),
        method="conformal",
        normals=count,
        wanted=wanted,
        reached=above / (count + 1),
        bound=float(stats.beta.ppf(CONFIDENCE, above, rank)),
    )


def best_f1_threshold(labels: ArrayLike, scores: ArrayLike) -> Threshold:
    """The threshold with the highest F1 of the anomalous class, half-way between two scores; the highest of equals.

    labels [N] in {0, 1}. Raises DataError where one class is missing: it would call everything anomalous, or nothing.
    """
    truth, values = np.asarray(labels).astype(bool), _finite(scores)
    if truth.all() or not truth.any():
        raise DataError("a threshold of best F1 needs held-out images of both classes; use a false-alarm rate")
    # below the lowest score everything is anomalous
    ordered = np.unique(values)
    cuts = np.r_[np.nextafter(ordered[0], -np.inf), (ordered[1:] + ordered[:-1]) / 2]
    above = values[None] > cuts[:, None]
    hits = (above & truth).sum(axis=1)
    f1 = 2 * hits / (above.sum(axis=1) + truth.sum())
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    return Threshold(float(cuts[best]), "best_f1", int((~truth).sum()), int(truth.sum()), f1=float(f1[best]))


def escape_rate(labels: ArrayLike, scores: ArrayLike, threshold: float) -> Rate:
    """Anomalous images that are not called so. labels, scores [N]; raises DataError where there are none."""
    truth = np.asarray(labels).astype(bool)
    missed = _finite(scores)[truth] <= threshold
    return rate(int(missed.sum()), int(truth.sum()))


def false_alarm_rate(labels: ArrayLike, scores: ArrayLike, threshold: float) -> Rate:
    """Normal images that are called anomalous; as `escape_rate`."""
    normal = ~np.asarray(labels).astype(bool)
    alarms = _finite(scores)[normal] > threshold
    return rate(int(alarms.sum()), int(normal.sum()))


def _finite(scores: ArrayLike) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise NonFiniteError(f"{int((~np.isfinite(values)).sum())} of {values.size} scores are not finite numbers")
    return values
