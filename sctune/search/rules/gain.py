"""What more trials may be expected to bring: the mean by which they improve the best, from the values seen lately.

The upper quarter of the late values is an exponential tail: a value above its threshold u is y with the chance
(r / k) exp(-(y - u) / b), where r of k values lie above u, and b is their mean excess, made r / (r - 1) times as long
for what r values leave unknown. Of m more draws the mean improvement over the best y* is then, exactly,
b (sum over j = 1 .. m of (1 - (1 - q)^j) / j), where q is the chance of one draw to be above y*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import chdtri

LATE = 20
"""A sampler moves on: the latest so many values count, or the later half where that is more."""
LEAST = 20
"""Values without which nothing is expected: a tail of five is the least to tell a length from."""
SHARE = 0.25
CERTAIN = 0.9


def expected_gain(values: Sequence[float], more: int, error: float = 0.0) -> float | None:
    """Mean true improvement of the best by `more` further values like the late ones; None: too few to say.

    values: of full runs in order of their numbers, higher is better. error: standard error of the difference of two of
    them. Of the best of several values a part is luck, of a new best as well: a value is to its truth as the variance
    of the truths is to that of the values, so that the improvement is shrunk by it, with the largest variance of values
    that is believed with 90 % certainty. 0 where all differences are luck.
    """
    if len(values) < LEAST:
        return None
    late = np.asarray(values[-max(LATE, len(values) // 2) :], dtype=np.float64)
    above = math.floor(SHARE * late.size)
    ordered = np.sort(late)[::-1]
    threshold = float(ordered[above])
    length = float((ordered[:above] - threshold).sum()) / (above - 1)
    if length <= 0 or more < 1:
        return 0.0
    chance = above / late.size * math.exp(-(max(values) - threshold) / length)
    draws = np.arange(1, more + 1)
    improvement = length * float((-np.expm1(draws * np.log1p(-chance)) / draws).sum())
    return improvement * _true_share(late, error)


def _true_share(late: np.ndarray, error: float) -> float:
    """Share of the variance of values that is of their truths. Of a paired error half the square is each one's own."""
    largest = float(late.var(ddof=1)) * (late.size - 1) / float(chdtri(late.size - 1, CERTAIN))
    return max(0.0, 1 - error**2 / 2 / largest) if largest > 0 else 0.0
