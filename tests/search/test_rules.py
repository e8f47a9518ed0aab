"""Early stopping rules by hand, their settings, and what Ray asks them."""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler

from sctune.errors import ConfigError
from sctune.report import FAILURE, OBJECTIVE, REPORT, EpochReport, TrialFailure
from sctune.search.rules.base import Decision, Rule
from sctune.search.rules.registry import make_rule
from sctune.search.rules.stopping import FairHalving, Hyperband, MedianStopping, SuccessiveHalving
from sctune.search.run.ray_scheduler import RuleScheduler


def stops(rule: Rule, number: int, epoch: int, value: float) -> bool:
    return rule.decide(number, epoch, value) is Decision.STOP


def test_rungs_lie_below_the_last_epoch() -> None:
    assert SuccessiveHalving(30, 3, 3).rungs == (3, 9, 27)
    assert SuccessiveHalving(6, 2, 2).rungs == (2, 4)
    assert SuccessiveHalving(1, 1, 3).rungs == ()


def test_asha_by_hand() -> None:
    rule = SuccessiveHalving(4, 1, 2)
    assert not stops(rule, 0, 1, 0.6)
    assert stops(rule, 1, 1, 0.5)  # below the median of {0.6}
    assert not stops(rule, 2, 1, 0.55)  # the median of {0.6, 0.5} itself
    assert not stops(rule, 2, 2, 0.1)  # the first at the second rung
    assert not stops(rule, 2, 1, 0.6)  # a repeated epoch meets the bar that it met first
    assert not stops(rule, 0, 3, 0.2)  # it skipped rung 2, and is judged there by epoch 3
    assert stops(rule, 3, 2, 0.1)


def test_the_first_rung_compares_within_a_method_and_the_second_all() -> None:
    """A method that has learned little by epoch 1 is not measured by another one that knows much by then."""
    rule = FairHalving(4, 1, 2)
    assert rule.rungs == (1, 2)
    for number, method in enumerate(["fast", "fast", "slow", "slow", "slow"]):
        rule.join(number, method)
    assert not stops(rule, 0, 1, 0.8)
    assert stops(rule, 1, 1, 0.7)
    assert not stops(rule, 2, 1, 0.5)  # the first of its method, far below the others
    assert stops(rule, 3, 1, 0.4)
    assert not stops(rule, 4, 1, 0.6)
    assert not stops(rule, 0, 2, 0.8)
    assert stops(rule, 2, 2, 0.7)  # below the only other at the second rung, whatever it trains
    assert stops(rule, 4, 3, 0.74)  # the median of {0.8, 0.7}, for a trial that skipped the rung
    for name in ("asha", "hyperband", "median"):
        assert make_rule(name, 1, None, 2, 0).rungs == ()


def test_median_by_hand() -> None:
    rule = MedianStopping(6, 2)
    curves = {0: [0.5, 0.6, 0.7], 1: [0.4, 0.5, 0.6], 2: [0.6, 0.7, 0.8]}
    for number, curve in curves.items():
        assert not any(stops(rule, number, epoch, value) for epoch, value in enumerate(curve, 1))
    median = statistics.median([0.55, 0.45, 0.65])
    assert not stops(rule, 3, 1, 0.3)  # before the grace
    assert stops(rule, 3, 2, median - 0.01)
    assert not stops(rule, 4, 2, median)


def test_median_waits_for_three_others() -> None:
    rule = MedianStopping(6, 1)
    assert not stops(rule, 0, 1, 0.9)
    assert not stops(rule, 1, 1, 0.9)
    assert not stops(rule, 2, 1, 0.1)
    assert stops(rule, 3, 1, 0.1)


def test_hyperband_brackets_depend_on_seed_and_number_alone() -> None:
    first, again, other = (Hyperband(30, 1, 3, seed) for seed in (0, 0, 1))
    drawn = [first.bracket_of(number) for number in range(400)]
    assert drawn == [again.bracket_of(number) for number in reversed(range(400))][::-1]
    assert drawn != [other.bracket_of(number) for number in range(400)]
    # rungs 1, 3, 9, 27: brackets of 4, 3, 2, 1, 0 rungs get 81, 34, 15, 8, 5 parts of 143
    shares = np.bincount(drawn, minlength=5) / 400
    assert shares == pytest.approx(np.array([81, 34, 15, 8, 5]) / 143, abs=0.08)
    assert [bracket.rungs[0] for bracket in first.brackets] == [1, 3, 9, 27]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("asah", 9, 1, 3), "did you mean 'asha'"),
        (("asha", 6, 7, 3), r"grace=7 must be in 1 .. budget.epochs=6"),
        (("median", 6, 0, 3), "grace=0"),
        (("hyperband", 6, 1, 1), "factor=1 must be 2 or more"),
    ],
)
def test_bad_settings_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_rule(*arguments, seed=0)


def test_default_grace_is_a_ninth_of_the_epochs() -> None:
    for epochs, first in [(30, 3), (6, 1), (90, 10)]:
        rule = make_rule("asha", epochs, None, 3, 0)
        assert rule is not None
        assert rule.rungs[0] == first
    assert make_rule("none", 9, None, 3, 0) is None


def test_ray_scheduler_asks_and_never_judges_a_failure() -> None:
    """To Ray a pause is a stop: the trial is suggested again when it is promoted."""
    asked: list[tuple[int, int, float]] = []

    def judge(number: int, report: EpochReport) -> Decision:
        asked.append((number, report.epoch, report.value))
        return [Decision.CONTINUE, Decision.STOP, Decision.PAUSE][number]

    scheduler = RuleScheduler(judge)

    def told(number: int, result: dict[str, Any]) -> str:
        return scheduler.on_trial_result(None, SimpleNamespace(config={"number": number}), result)

    results = [{REPORT: EpochReport(1, 4, {OBJECTIVE: value})} for value in (0.9, 0.1, 0.5)]
    assert told(1, {FAILURE: TrialFailure("oom", "m")}) == TrialScheduler.CONTINUE
    assert [told(number, result) for number, result in enumerate(results)] == [
        TrialScheduler.CONTINUE,
        TrialScheduler.STOP,
        TrialScheduler.STOP,
    ]
    assert asked == [(0, 1, 0.9), (1, 1, 0.1), (2, 1, 0.5)]
