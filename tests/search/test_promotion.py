"""Halving by promotion: by hand, against its definition over whole searches with kills, and through the controller."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search import Searcher

from sctune.report import REPORT
from sctune.search.rules.base import Decision, Rule
from sctune.search.rules.promotion import PromotionHalving, PromotionHyperband
from sctune.search.rules.registry import make_rule
from sctune.search.run.controller import End, EndReason
from tests.builders import FLAT
from tests.search.searching import EPOCHS, make_study, open_searcher, refill, result

CONTINUE, PAUSE = Decision.CONTINUE, Decision.PAUSE


def test_by_hand() -> None:
    rule = PromotionHalving(9, 1, 3)
    assert rule.rungs == (1, 3)
    assert [rule.decide(number, 1, value) for number, value in enumerate([0.5, 0.6])] == [PAUSE, PAUSE]
    assert rule.promote() == []  # a third of two is nobody
    assert rule.decide(2, 1, 0.55) is PAUSE
    assert rule.promote() == [1] and rule.promote() == []
    assert rule.decide(1, 2, 0.1) is CONTINUE  # between rungs nothing is judged
    assert rule.decide(1, 3, 0.7) is PAUSE
    assert [rule.decide(number, 1, 0.9) for number in (3, 4)] == [CONTINUE, PAUSE]  # two of five: one, then 3 itself
    assert rule.decide(5, 1, 0.1) is PAUSE
    assert rule.promote() == [4]  # two of six, and trial 1 is none of them any more
    assert [rule.decide(number, 3, value) for number, value in ((3, 0.6), (4, 0.65))] == [PAUSE, PAUSE]
    assert rule.promote() == [1]
    assert rule.decide(1, 9, 0.0) is CONTINUE  # the last epoch ends a trial anyway


def test_where_nothing_else_is_left_each_rung_gives_its_best() -> None:
    rule = PromotionHalving(9, 1, 3)
    assert [rule.decide(number, 1, value) for number, value in enumerate([0.5, 0.6])] == [PAUSE, PAUSE]
    assert list(rule.promote()) == [] and list(rule.promote_last()) == [1] and list(rule.promote_last()) == []
    assert rule.decide(1, 3, 0.7) is PAUSE
    assert list(rule.promote()) == [] and list(rule.promote_last()) == [1] and list(rule.promote_last()) == []


def test_the_first_rung_compares_within_a_method() -> None:
    rule = PromotionHalving(9, 1, 2)
    for number, method in enumerate(["fast", "slow", "fast", "slow"]):
        rule.join(number, method)
    assert [rule.decide(number, 1, value) for number, value in ((0, 0.8), (1, 0.3), (2, 0.7), (3, 0.4))] == [
        PAUSE, PAUSE, PAUSE, CONTINUE,
    ]  # fmt: skip
    assert rule.promote() == [0]
    assert rule.decide(0, 2, 0.8) is PAUSE and rule.decide(3, 2, 0.5) is PAUSE  # at the second all are compared
    assert rule.promote() == [0]


def test_brackets_are_those_of_hyperband_and_promote_apart() -> None:
    rule, stopping = (make_rule(name, 9, 1, 3, 5) for name in ("hyperband-promotion", "hyperband"))
    assert isinstance(rule, PromotionHyperband) and isinstance(stopping, type(rule).__mro__[1])
    drawn = [rule.bracket_of(number) for number in range(60)]
    assert drawn == [stopping.bracket_of(number) for number in range(60)] and set(drawn) == {0, 1, 2}
    first, second, free = ([n for n in range(60) if drawn[n] == bracket][:3] for bracket in range(3))
    assert all(rule.decide(number, 3, 0.0) is CONTINUE for number in free)
    assert all(rule.decide(number, 1, 0.1) is PAUSE for number in first)
    assert all(rule.decide(number, 1, 0.1) is CONTINUE for number in second)  # its first rung is 3
    assert all(rule.decide(number, 3, 0.9) is PAUSE for number in second[:2])
    assert list(rule.promote()) == [first[0]]
    assert list(rule.promote_last()) == [second[0]]


class Driver:
    """What a driver does with a rule, as far as the rule can tell: workers, pauses, promotions, kills.

    Every answer is compared with the definition, which looks at the whole list of what was reported at a rung.
    """

    def __init__(self, rng: random.Random, trials: int, factor: int, methods: int) -> None:
        self.rng, self.factor, self.methods = rng, factor, methods
        self.curves = [[rng.randint(0, 5) / 10 for _ in range(EPOCHS_ALL)] for _ in range(trials)]
        self.reports: list[tuple[int, int, float]] = []
        self.epoch = dict.fromkeys(range(trials), 0)
        self.new = list(range(trials))
        self.live: set[int] = set()
        self.paused: dict[int, int] = {}
        self.promoted: dict[int, int] = {}
        self.ended: set[int] = set()
        self.open()

    def open(self) -> None:
        self.rule = PromotionHalving(EPOCHS_ALL, 1, self.factor)
        for number in self.epoch:
            self.rule.join(number, str(number % self.methods))
        refill(self.rule, self.reports)
        for number, epoch in self.promoted.items():
            self.rule.promoted(number, epoch)

    def best(self, number: int, rung: int) -> set[int]:
        """The best 1/factor of those that a trial is compared with at a rung."""
        values = {n: v for n, epoch, v in self.reports if epoch == rung}
        if rung == self.rule.rungs[0]:
            values = {n: v for n, v in values.items() if (n - number) % self.methods == 0}
        ranked = sorted(values, key=lambda n: (-values[n], n))
        return set(ranked[: len(values) // self.factor])

    def run(self, workers: int, kills: float) -> None:
        while len(self.ended) < len(self.epoch):
            if self.rng.random() < kills:
                self.open()
            while len(self.live) < workers and self.start():
                pass
            if not self.live:
                return
            self.report(self.rng.choice(sorted(self.live)))

    def start(self) -> bool:
        for number in self.rule.promote():
            if number in self.paused:
                assert number in self.best(number, self.paused[number])
                self.go_on(number)
        waiting = [n for n in self.epoch if n not in self.live | self.ended | self.paused.keys() | set(self.new)]
        if not waiting and self.new:
            waiting = [self.new.pop(0)]
        if not waiting and not self.live:
            waiting = [n for n in self.rule.promote_last() if n in self.paused]
            for number in waiting:
                self.go_on(number)
        if not waiting:
            return False
        self.live.add(waiting[0])
        return True

    def go_on(self, number: int) -> None:
        self.promoted[number] = self.paused.pop(number)

    def report(self, number: int) -> None:
        self.epoch[number] += 1
        epoch, value = self.epoch[number], self.curves[number][self.epoch[number] - 1]
        self.reports.append((number, epoch, value))
        decision = self.rule.decide(number, epoch, value)
        if epoch == EPOCHS_ALL:
            assert decision is CONTINUE
            self.live.remove(number)
            self.ended.add(number)
        elif epoch in self.rule.rungs:
            assert (decision is CONTINUE) == (number in self.best(number, epoch))
            if decision is PAUSE:
                self.live.remove(number)
                self.paused[number] = epoch
        else:
            assert decision is CONTINUE


EPOCHS_ALL = 9


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**9), st.integers(1, 14), st.integers(2, 4), st.integers(1, 2), st.integers(1, 4),
    st.sampled_from([0.0, 0.2]),
)  # fmt: skip
def test_a_search_is_by_the_definition_whatever_the_workers_and_kills(
    seed: int, trials: int, factor: int, methods: int, workers: int, kills: float
) -> None:
    driver = Driver(random.Random(seed), trials, factor, methods)
    driver.run(workers, kills)
    # some trial came to the end, nobody runs, and none that is paused is among the best of its rung
    assert driver.ended and not driver.live and not driver.new
    for number, rung in driver.paused.items():
        assert number not in driver.best(number, rung)
    assert driver.ended | driver.paused.keys() == set(range(trials))


VALUES = {0: 0.6, 1: 0.9, 2: 0.7, 3: 0.5, 4: 0.65}


def train(searcher: Any, trial_id: str, number: int) -> None:
    """What a worker does with a trial from its checkpoint on, until it ends or the rule takes it."""
    told_before = {epoch for other, epoch, _ in searcher.controller.history if other == number}
    for epoch in range(max(told_before, default=0) + 1, EPOCHS):
        told = result(epoch, VALUES[number])
        if searcher.controller.decide(number, told[REPORT]) is not CONTINUE:
            return searcher.on_trial_complete(trial_id, told)
        searcher.on_trial_result(trial_id, told)
    return searcher.on_trial_complete(trial_id, result(EPOCHS, VALUES[number]))


@pytest.mark.parametrize(("trials", "full"), [(1, [0]), (2, [1]), (5, [1])])
@pytest.mark.parametrize("killed", [False, True])
def test_a_search_ends_with_full_runs_whatever_is_left(
    tmp_path: Path, trials: int, full: list[int], killed: bool
) -> None:
    """Few trials: a third of them is nobody until nothing else is left. killed: the driver, before each step."""
    study = make_study(tmp_path, FLAT, trials)

    def rule() -> Rule:
        return PromotionHalving(EPOCHS, 1, 3)

    searcher = open_searcher(study, rule=rule())
    for step in range(30):
        if killed:
            searcher.controller.record.flush()
            searcher = open_searcher(study, rule=rule())
        config = searcher.suggest(str(step))
        if config == Searcher.FINISHED:
            break
        assert isinstance(config, dict)
        train(searcher, str(step), config["number"])
    assert searcher.controller.end == End(EndReason.DONE)
    stored = searcher.controller.record.load()
    assert [trial.number for trial in stored if trial.state.name == "COMPLETE"] == full
    assert {trial.state.name for trial in stored} <= {"COMPLETE", "PRUNED"} and len(stored) == trials
    searcher.controller.record.close()
