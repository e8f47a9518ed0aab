"""Thresholds by hand, and what split-conformal calibration promises: for exchangeable scores it holds exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from sctune.errors import ConfigError, DataError, NonFiniteError
from sctune.metrics.threshold import (
    Threshold,
    best_f1_threshold,
    conformal_threshold,
    escape_rate,
    false_alarm_rate,
    rate,
)


def test_the_quantile_by_hand() -> None:
    # 19 scores, 10 %: k = ceil(20 * 0.9) = 18, so two of twenty places lie above
    found = conformal_threshold(range(1, 20), 0.1)
    assert (found.value, found.reached, found.is_reached) == (18.0, pytest.approx(0.1), True)
    # 0.2 * 5 is 1 in floats only roughly: the fourth of four is the fourth
    assert conformal_threshold([1, 2, 3, 4], 0.2).value == 4.0
    # exactly one in a hundred with 99 images
    assert conformal_threshold(np.arange(99), 0.01).reached == pytest.approx(0.01)


def test_too_few_images_say_what_they_reach() -> None:
    found = conformal_threshold(np.arange(49), 0.01)
    assert (found.value, found.reached, found.is_reached) == (48.0, pytest.approx(1 / 50), False)
    # P(max of 49 uniforms < 1 - b) = 5 %
    assert found.bound == pytest.approx(1 - 0.05 ** (1 / 49))
    assert "1 % was wanted, which takes 99 calibration images" in found.line()
    assert "wanted" not in conformal_threshold(np.arange(99), 0.01).line()


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40, unique=True), st.floats(0.001, 0.999))
def test_each_image_in_turn_raises_no_more_alarms_than_promised(scores: list[float], wanted: float) -> None:
    """Leaving out each of n + 1 images in turn is what "on average over calibration sets" means."""
    alarms = [
        bool(conformal_threshold(scores[:i] + scores[i + 1 :], wanted).anomalous([score])[0])
        for i, score in enumerate(scores)
    ]
    reached = conformal_threshold(scores[1:], wanted).reached
    assert reached is not None
    assert sum(alarms) / len(alarms) <= reached + 1e-9
    if conformal_threshold(scores[1:], wanted).is_reached:
        assert sum(alarms) / len(alarms) <= wanted + 1e-9


def test_the_bound_holds_nineteen_times_of_twenty() -> None:
    random = np.random.default_rng(0)
    broken = 0
    for _ in range(2000):
        found = conformal_threshold(random.random(60), 0.05)
        assert found.bound is not None
        broken += 1 - found.value > found.bound  # the true rate of uniform scores
    low, high = stats.binom.interval(0.999, 2000, 0.05)
    assert low <= broken <= high


@pytest.mark.parametrize("wanted", [0.0, 1.0, -0.1, math.nan])
def test_impossible_rates_are_refused(wanted: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        conformal_threshold([1, 2, 3], wanted)


def test_scores_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match="no calibration images"):
        conformal_threshold([], 0.1)
    with pytest.raises(NonFiniteError):
        conformal_threshold([1.0, math.nan], 0.1)
    with pytest.raises(DataError, match="both classes"):
        best_f1_threshold([0, 0, 0], [1, 2, 3])


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=30).filter(
        lambda rows: 0 < sum(label for label, _ in rows) < len(rows)
    )
)
def test_no_other_threshold_has_a_better_f1(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([int(label) for label, _ in rows]), np.array([score for _, score in rows], float)
    found = best_f1_threshold(labels, scores)
    ours = f1_score(labels, found.anomalous(scores))
    assert found.f1 == pytest.approx(ours)
    others = [f1_score(labels, scores > cut, zero_division=0) for cut in np.arange(-0.5, 9)]
    assert ours == pytest.approx(max(others))


def test_the_higher_of_equal_f1_is_taken() -> None:
    # above 2.5: one hit; above 1.5: one hit and nothing else in between
    assert best_f1_threshold([0, 1], [1.0, 2.0]).value == 1.5


def test_rates_by_hand() -> None:
    labels, scores = [0, 0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.3, 0.9, 0.3, 0.8, 0.9]
    escapes, alarms = escape_rate(labels, scores, 0.3), false_alarm_rate(labels, scores, 0.3)
    # a score at the threshold is not above it
    assert (escapes.count, escapes.total) == (1, 3)
    assert (alarms.count, alarms.total) == (1, 4)
    # Clopper-Pearson: quantiles of beta distributions
    assert escapes.low == pytest.approx(stats.beta.ppf(0.025, 1, 3))
    assert escapes.high == pytest.approx(stats.beta.ppf(0.975, 2, 2))
    assert rate(0, 20).low == 0.0 and rate(0, 20).high == pytest.approx(1 - 0.025 ** (1 / 20))
    with pytest.raises(DataError):
        escape_rate([0, 0], [1, 2], 0.5)


def test_it_is_read_back_as_it_was_written() -> None:
    found = conformal_threshold(range(30), 0.1)
    assert Threshold.from_dict(found.to_dict()) == found
    for damaged in ({"value": 1.0}, {"value": "x", "method": "given"}, {"value": 1.0, "method": "given", "more": 2}):
        with pytest.raises(ValueError):
            Threshold.from_dict(damaged)
