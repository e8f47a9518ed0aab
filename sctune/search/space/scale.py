"""Numbers on the scale on which a sampler draws them: 0 to 1 over the range, logarithmic where the space says so."""

from __future__ import annotations

import math

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution


def unit_cell(distribution: BaseDistribution, stored: float) -> tuple[float, float]:
    """The part of [0, 1] that a value of a number or an ordered choice stands for; a point where it is continuous.

    stored: as Optuna stores it.
    """
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    half = 0.0 if distribution.step is None else distribution.step / 2
    scale = math.log if distribution.log else float
    low, high = scale(distribution.low - half), scale(distribution.high + half)
    if high <= low:
        return 0.0, 1.0
    return (scale(stored - half) - low) / (high - low), (scale(stored + half) - low) / (high - low)


def from_unit(distribution: BaseDistribution, place: float) -> float:
    """The value at a place in [0, 1], as Optuna stores it; the other way round than `unit_cell`."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    step = distribution.step
    half = 0.0 if step is None else step / 2
    scale, back = (math.log, math.exp) if distribution.log else (float, float)
    low, high = scale(distribution.low - half), scale(distribution.high + half)
    value = back(low + place * (high - low))
    if step is not None:
        value = distribution.low + step * round((value - distribution.low) / step)
    value = min(max(value, distribution.low), distribution.high)
    return int(value) if isinstance(distribution, IntDistribution) else value
