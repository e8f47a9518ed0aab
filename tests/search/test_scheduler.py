"""Early stopping rules by hand, their settings, and what Ray asks them."""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler

from sctune.errors import ConfigError
from sctune.metrics.objective import FPR95
from sctune.report import EPOCH, OBJECTIVE
from sctune.search.rules.stopping import Hyperband, MedianStopping, Rule, SuccessiveHalving, make_rule
from sctune.search.run.ray_scheduler import RuleScheduler


def test_rungs_lie_below_the_last_epoch() -> None:
    assert SuccessiveHalving(30, 3, 3).rungs == (3, 9, 27)
    assert SuccessiveHalving(6, 2, 2).rungs == (2, 4)
    assert SuccessiveHalving(1, 1, 3).rungs == ()


def test_asha_by_hand() -> None:
    rule = SuccessiveHalving(4, 1, 2)
    assert not rule.decide(0, 1, 0.6)
    assert rule.decide(1, 1, 0.5)  # below the median of {0.6}
    assert not rule.decide(2, 1, 0.55)  # the median of {0.6, 0.5} itself
    assert not rule.decide(2, 2, 0.1)  # the first at the second rung
    assert not rule.decide(2, 1, 0.6)  # a repeated epoch meets the bar that it met first
    assert not rule.decide(0, 3, 0.2)  # it skipped rung 2, and is judged there by epoch 3
    assert rule.decide(3, 2, 0.1)


def test_median_by_hand() -> None:
    rule = MedianStopping(6, 2)
    curves = {0: [0.5, 0.6, 0.7], 1: [0.4, 0.5, 0.6], 2: [0.6, 0.7, 0.8]}
    for number, curve in curves.items():
        assert not any(rule.decide(number, epoch, value) for epoch, value in enumerate(curve, 1))
    median = statistics.median([0.55, 0.45, 0.65])
    assert not rule.decide(3, 1, 0.3)  # before the grace
    assert rule.decide(3, 2, median - 0.01)
    assert not rule.decide(4, 2, median)


def test_median_waits_for_three_others() -> None:
    rule = MedianStopping(6, 1)
    assert not rule.decide(0, 1, 0.9)
    assert not rule.decide(1, 1, 0.9)
    assert not rule.decide(2, 1, 0.1)
    assert rule.decide(3, 1, 0.1)


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


def decide(scheduler: RuleScheduler, number: int, **result: Any) -> str:
    return scheduler.on_trial_result(None, SimpleNamespace(config={"number": number}), result)


def test_ray_scheduler_asks_the_rule_and_never_judges_a_failure() -> None:
    rule: Rule = SuccessiveHalving(4, 1, 2)
    scheduler = RuleScheduler(rule)
    assert decide(scheduler, 0, **{EPOCH: 1, OBJECTIVE: 0.9}) == TrialScheduler.CONTINUE
    assert decide(scheduler, 1, **{"failure/kind": "oom", OBJECTIVE: 0.0, EPOCH: 1}) == TrialScheduler.CONTINUE
    assert decide(scheduler, 1, **{EPOCH: 1, OBJECTIVE: 0.1}) == TrialScheduler.STOP
    assert decide(RuleScheduler(None), 1, **{EPOCH: 1, OBJECTIVE: 0.1}) == TrialScheduler.CONTINUE


def test_where_lower_is_better_the_rule_keeps_the_lower_ones() -> None:
    scheduler = RuleScheduler(SuccessiveHalving(4, 1, 2), objective=FPR95)
    told = [(number, {EPOCH: 1, FPR95.metric: value}) for number, value in enumerate((0.4, 0.1, 0.3, 0.05))]
    answers = [decide(scheduler, number, **report) for number, report in told]
    # the bar is the median of those before: only trial 2 lies on the wrong side of it
    assert answers == [TrialScheduler.CONTINUE, TrialScheduler.CONTINUE, TrialScheduler.STOP, TrialScheduler.CONTINUE]
