"""A bar that allows for what may still change: by hand, against a model without state, and over simulated searches."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from sctune.errors import ConfigError
from sctune.search.rules.base import Decision, Rule
from sctune.search.rules.outlook import PRIOR_RUNS, Outlook
from sctune.search.rules.registry import make_rule

EPOCHS = 9


def rule_of(name: str, confidence: float | None, behind: int | None = None, factor: int = 2) -> Rule:
    rule = make_rule(name, EPOCHS, 1, factor, 0, behind, confidence=confidence)
    assert rule is not None
    return rule


def by_hand(values: list[float], gains: list[float], errors: list[float], confidence: float) -> float:
    """How much lower than the values say the bar is."""
    middle = statistics.median(values)
    prior = (statistics.median(abs(value - middle) for value in values) / stats.norm.ppf(0.75)) ** 2
    freedom = PRIOR_RUNS + max(len(gains) - 1, 0)
    mean = statistics.fmean(gains) if gains else 0.0
    spread = (PRIOR_RUNS * prior + sum((gain - mean) ** 2 for gain in gains)) / freedom
    paired = statistics.fmean([error**2 for error in errors]) if errors else 0.0
    return float(stats.t.ppf(confidence, freedom)) * math.sqrt(2 * spread + paired)


def test_a_bar_by_hand() -> None:
    rule = rule_of("asha", 0.8)
    assert rule.knows_noise
    for number, (value, end) in enumerate(((0.60, 0.75), (0.70, 0.80), (0.66, 0.84))):
        assert rule.decide(number, 1, value) is Decision.CONTINUE, number  # two are needed to tell a spread
        rule.completed(number, end, None if number == 0 else 0.03)
    bar = 0.66 - by_hand([0.60, 0.70, 0.66], [0.15, 0.10, 0.18], [0.03, 0.03], 0.8)
    assert bar < 0.6
    assert rule.decide(3, 1, bar - 1e-9) is Decision.STOP
    later = statistics.median([0.60, 0.70, 0.66, bar - 1e-9])
    later -= by_hand([0.60, 0.70, 0.66, bar - 1e-9], [0.15, 0.10, 0.18], [0.03, 0.03], 0.8)
    assert rule.decide(4, 1, later + 1e-9) is Decision.CONTINUE
    # what ends later does not move a bar that was met
    rule.completed(5, 0.9, 0.5)
    assert rule.decide(3, 1, bar - 1e-9) is Decision.STOP
    assert rule.decide(4, 1, later - 1e-9) is Decision.STOP


def test_a_trial_is_told_by_gains_of_its_own_method_at_the_first_rung() -> None:
    outlook = Outlook(0.9, shared=2)
    values = [0.5, 0.6, 0.7]
    for number, (method, gain) in enumerate((("a", 0.1), ("a", 0.2), ("b", 0.9), ("b", -0.9))):
        outlook.join(number, method)
        outlook.heard(number, 1, 0.5)
        outlook.heard(number, 2, 0.5)
        outlook.completed(number, 0.5 + gain, None)
    outlook.join(9, "a")
    assert outlook.lower(0.6, 9, 1, values) == pytest.approx(0.6 - by_hand(values, [0.1, 0.2], [], 0.9))
    everyone = by_hand(values, [0.1, 0.2, 0.9, -0.9], [], 0.9)
    assert outlook.lower(0.6, 9, 2, values) == pytest.approx(0.6 - everyone)
    # nobody has come to epoch 3, and one value tells no spread
    assert outlook.lower(0.6, 9, 3, values) == pytest.approx(0.6 - by_hand(values, [], [], 0.9))
    assert outlook.lower(0.6, 9, 1, [0.6]) == -math.inf == outlook.lower(-math.inf, 9, 1, [])


def test_the_median_rule_allows_for_gains_over_the_best_value_so_far() -> None:
    rule = rule_of("median", 0.8)
    curves = [[0.6, 0.5], [0.5, 0.6], [0.4, 0.7]]
    for number, curve in enumerate(curves):
        for epoch, value in enumerate(curve, 1):
            assert rule.decide(number, epoch, value) is Decision.CONTINUE
        rule.completed(number, 0.9 - number / 50, 0.02)
    means = [0.55, 0.55, 0.55]
    gains = [0.9 - 0.6, 0.88 - 0.6, 0.86 - 0.7]
    bar = 0.55 - by_hand(means, gains, [0.02], 0.8)
    for number, value, decision in ((3, bar - 1e-9, Decision.STOP), (4, bar + 1e-9, Decision.CONTINUE)):
        assert rule.decide(number, 2, value) is decision


@pytest.mark.parametrize("confidence", [0.0, 0.49, 1.0, 2.0, math.nan])
def test_bad_chances_are_refused(confidence: float) -> None:
    with pytest.raises(ConfigError, match=r"give a chance from 0\.5 to below 1"):
        rule_of("asha", confidence)


def test_who_cannot_know_it_says_so() -> None:
    for name in ("asha-promotion", "hyperband-promotion"):
        with pytest.raises(ConfigError, match=f"scheduler {name} pauses trials and stops none for good; leave it out"):
            rule_of(name, 0.8)
    # a confidence of a rule that stops nobody is refused with the plan
    assert make_rule("none", EPOCHS, 1, 2, 0, confidence=0.8) is None


Event = tuple[int, int, float]


def events(rng: random.Random, trials: int, noise: float = 0.05) -> Iterator[Event]:
    """(number, epoch, value) of curves that come in any order; a trial begins when those well before it have ended."""
    curves = {}
    for number in range(trials):
        end, start = rng.gauss(0.8, 0.05), rng.gauss(0.15, 0.03)
        curves[number] = [end - start * (1 - epoch / EPOCHS) + rng.gauss(0, noise) for epoch in range(1, EPOCHS + 1)]
    told = dict.fromkeys(curves, 0)
    live = [0, 1, 2]
    while live:
        number = rng.choice(live)
        told[number] += 1
        stopped = yield number, told[number], curves[number][told[number] - 1]
        if stopped or told[number] == EPOCHS:
            live.remove(number)
            new = max(told, key=lambda one: (told[one] > 0 or one in live, one)) + 1
            live += [new] if new < trials else []


def searched(rule: Rule, rng: random.Random, trials: int) -> list[tuple[Event, bool]]:
    """What was told, and whether it ended the trial."""
    for number in range(trials):
        rule.join(number, "ab"[number % 2])
    told, course = [], events(rng, trials)
    event = next(course)
    while True:
        number, epoch, value = event
        if epoch == EPOCHS:
            rule.completed(number, value, number / 500)
        stopped = epoch < EPOCHS and rule.decide(number, epoch, value) is Decision.STOP
        told.append((event, stopped))
        try:
            event = course.send(stopped)
        except StopIteration:
            return told


def model(past: list[Event], now: Event, confidence: float, behind: int | None) -> bool:
    """Whether ASHA (grace 1, factor 2, rungs 1, 2, 4, 8) stops the trial, from the list of what was told before."""
    number, epoch, value = now
    if epoch not in (1, 2, 4, 8):
        return False
    known = [one for one in past if behind is None or one[0] < number - behind]
    peers = [one for one in known if one[1] == epoch and (epoch > 1 or one[0] % 2 == number % 2)]
    if not peers:
        return False
    if len(peers) < 2:
        return False
    ends = {one: seen for one, when, seen in known if when == EPOCHS}
    gains = [ends[one] - seen for one, _, seen in peers if one in ends]
    values = [seen for _, _, seen in peers]
    bar = statistics.median(values) - by_hand(values, gains, [one / 500 for one in ends], confidence)
    assert abs(bar - value) > 1e-9  # or the test says nothing
    return value < bar


@pytest.mark.parametrize("behind", [None, 3])
def test_asha_is_its_model(behind: int | None) -> None:
    stopped = 0
    for seed in range(30):
        told = searched(rule_of("asha", 0.7, behind), random.Random(seed), 24)
        past: list[Event] = []
        for event, ended in told:
            assert ended == model(past, event, 0.7, behind), (seed, event)
            past.append(event)
            stopped += ended
    assert stopped > 100


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_at_one_half_nothing_changes(name: str) -> None:
    for seed in range(20):
        plain, half = (searched(rule_of(name, confidence), random.Random(seed), 24) for confidence in (None, 0.5))
        assert plain == half
        assert any(ended for _, ended in plain)


def test_without_noise_the_bar_comes_to_be_the_plain_one() -> None:
    """Every trial gains the same: what is left is the prior's share, which goes with the number of full runs."""
    lowered = []
    for runs in (10, 100, 1000):
        outlook = Outlook(0.9, shared=1)
        values = [0.5 + number / runs for number in range(runs)]
        for number, value in enumerate(values):
            outlook.heard(number, 1, value)
            outlook.completed(number, value + 0.1, 0.0)
        lowered.append(0.7 - outlook.lower(0.7, runs, 1, values))
    assert lowered[0] > 2.5 * lowered[1] > 2.5**2 * lowered[2] > 0 and lowered[2] < 0.05


def simulated(confidence: float | None, noise: float, searches: int) -> tuple[int, float, int]:
    """How often ASHA stops the trial that is best by its truth, the share of the stopped that would have ended among
    the better half, and the epochs.
    """
    lost, epochs, wrong = 0, 0, []
    for seed in range(searches):
        rng = np.random.default_rng(seed)
        truth = rng.normal(0.8, 0.03, 20)
        learned = 0.2 * np.exp(-np.arange(1, EPOCHS + 1) / 3)
        curves = truth[:, None] - learned + rng.normal(0, noise, (20, EPOCHS))
        rule = rule_of("asha", confidence)
        ends = np.array([_run(rule, number, curve) for number, curve in enumerate(curves)])
        stopped = ends < EPOCHS
        lost += bool(stopped[truth.argmax()])
        epochs += int(ends.sum())
        wrong += list(curves[stopped, -1] > np.median(curves[:, -1]))
    return lost, float(np.mean(wrong)), epochs


def test_the_best_trial_is_stopped_less_often_the_more_certain_a_stop_must_be() -> None:
    found = [simulated(confidence, 0.04, 80) for confidence in (None, 0.6, 0.8, 0.95)]
    lost, wrong, epochs = zip(*found, strict=True)
    assert lost[0] > 1.5 * lost[1] > 1.5**2 * lost[2] > 1.5**3 * lost[3]
    assert list(wrong) == sorted(wrong, reverse=True) and list(epochs) == sorted(epochs)


def test_a_stop_is_as_certain_as_it_says_where_curves_tell_more_than_their_noise() -> None:
    """With 0.8, a fifth at most of those that are stopped would have come to be among the better half."""
    (_, plain, _), (_, certain, _), (_, surer, _) = (simulated(one, 0.01, 60) for one in (None, 0.8, 0.95))
    assert plain > 0.3 and certain < 0.2 and surer < 0.07


def _run(rule: Rule, number: int, curve: np.ndarray) -> int:
    """The epoch at which a trial ends."""
    for epoch, value in enumerate(curve[:-1], 1):
        if rule.decide(number, epoch, float(value)) is Decision.STOP:
            return epoch
    rule.completed(number, float(curve[-1]), None)
    return EPOCHS
