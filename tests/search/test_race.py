"""Racing over replicates: by hand, its promises over whole searches with kills, on drawn values, in the controller."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search import Searcher

from sctune.errors import ConfigError
from sctune.metrics.replicates import standing
from sctune.report import OBJECTIVE, REPORT, VALUE, EpochReport
from sctune.search.rules.base import Decision, Rule
from sctune.search.rules.race import ADMITTED, Race, WithinFirst, further_replicates
from sctune.search.rules.registry import make_rule
from sctune.search.run.controller import End, EndReason
from sctune.search.study.replay import Fate, curves_of, replay
from tests.builders import FLAT
from tests.search.searching import make_study, open_searcher

CONTINUE, PAUSE, STOP = Decision.CONTINUE, Decision.PAUSE, Decision.STOP


def make_race(trials: int, replicates: int = 3, epochs: int = 2, grace: int | None = None) -> Race:
    rule = make_rule("race", epochs, grace or epochs, 2, 0, replicates=replicates, trials=trials)
    assert isinstance(rule, Race)
    return rule


def test_by_hand() -> None:
    rule = make_race(trials=4)
    assert rule.rungs == (2, 4) and further_replicates(4, 3) == 2 and further_replicates(12, 3) == 6
    for number, value in enumerate((0.7, 0.8, 0.79)):
        rule.join(number, "")
        assert rule.decide(number, 1, 0.0) is CONTINUE  # within a replicate nobody is compared
        assert rule.decide(number, 2, value) is PAUSE
        assert rule.promote() == ()  # too few to race, and one more to begin
    rule.join(3, "")
    assert rule.decide(3, 2, 0.71) is PAUSE
    # two further replicates, and the leader needs both
    assert rule.promote() == (1,) and rule.promote() == ()
    assert rule.decide(1, 3, 0.8) is CONTINUE and rule.decide(1, 4, 0.78) is PAUSE
    assert rule.promote() == (1,)
    rule.completed(1, 0.77, None)
    assert rule.promote() == () and rule.promote_last() == ()


def test_those_that_may_be_the_best_race_and_the_leader_comes_to_its_end() -> None:
    """Eight trials, two of them ahead of the rest by far: further replicates go to these two alone."""
    rule, values = make_race(trials=8, epochs=1, replicates=4), [0.9, 0.88, *[0.5 + n / 100 for n in range(6)]]
    for number, value in enumerate(values):
        rule.join(number, "")
        assert rule.decide(number, 1, value) is PAUSE
    named = []
    done = dict.fromkeys(range(8), 1)
    while chosen := rule.promote() or rule.promote_last():
        (number,) = chosen
        named.append(number)
        done[number] += 1
        if done[number] == 4:
            rule.completed(number, values[number], None)
        else:
            assert rule.decide(number, done[number], values[number]) is PAUSE
    # four in all, three of which the leader needs
    assert sorted(named) == [0, 0, 0, 1] and done[0] == 4


def test_who_is_far_behind_is_stopped_and_gives_its_checkpoint_back() -> None:
    rule = make_race(trials=40, epochs=1, replicates=6)
    for number in range(20):
        rule.join(number, "")
        assert rule.decide(number, 1, 0.8 + number / 1000) is PAUSE
    # one value each says nothing of the error: half of what they differ by is taken for it
    rule.join(20, "")
    assert rule.decide(20, 1, 0.799) is PAUSE
    for number in range(15, 20):
        for replicate in range(2, 5):
            assert rule.decide(number, replicate, 0.8 + number / 1000) is PAUSE
    rule.join(21, "")
    assert rule.decide(21, 1, 0.799) is STOP


def test_a_failed_leader_leaves_the_race_to_others() -> None:
    rule = make_race(trials=4)
    for number, value in enumerate((0.9, 0.8, 0.79, 0.7)):
        rule.join(number, "")
        rule.decide(number, 2, value)
    assert rule.promote() == (0,)
    rule.ended(0, failed=True)
    assert rule.promote() == (1,)
    assert rule.decide(1, 4, 0.8) is PAUSE and rule.promote() == ()
    # the budget is spent, and nobody is at his end
    assert rule.promote_last() == (1,)
    rule.completed(1, 0.8, None)
    assert rule.promote_last() == ()


def test_a_promotion_that_was_passed_over_is_taken_back() -> None:
    """The driver was killed between the report of a replicate and its pause: the trial runs, and tells it again."""
    rule = make_race(trials=4)
    for number, value in enumerate((0.9, 0.5, 0.5, 0.5)):
        rule.join(number, "")
        rule.decide(number, 2, value)
    assert rule.promote() == (0,)  # to the driver it is not paused
    assert rule.promote() == ()
    assert rule.decide(0, 2, 0.9) is PAUSE and rule.promote() == (0,)


def test_other_rules_judge_the_first_replicate_alone() -> None:
    rule = make_rule("asha", 4, 1, 2, 0, replicates=3, trials=4)
    assert isinstance(rule, WithinFirst) and rule.rungs == (1, 2, 4, 8) and rule.looks_behind and not rule.pauses
    assert [rule.decide(number, 1, value) for number, value in ((0, 0.8), (1, 0.5))] == [CONTINUE, STOP]
    assert [rule.decide(0, epoch, 0.0) for epoch in (4, 5, 6, 8, 11)] == [CONTINUE] * 5
    raced = make_rule("race", 4, 1, 2, 0, replicates=3, trials=4)
    assert raced is not None and raced.rungs == (1, 2, 4, 8) and raced.pauses and not raced.looks_behind
    assert [raced.decide(number, 1, value) for number, value in ((0, 0.8), (1, 0.5))] == [CONTINUE, STOP]
    assert raced.decide(0, 4, 0.8) is PAUSE
    pausing = make_rule("asha-promotion", 4, 2, 2, 0, replicates=2, trials=4)
    assert pausing is not None and pausing.pauses
    assert [pausing.decide(number, 2, value) for number, value in ((0, 0.8), (1, 0.9))] == [PAUSE, CONTINUE]
    assert pausing.decide(1, 4, 0.9) is CONTINUE and list(pausing.promote_last()) == []
    with pytest.raises(ConfigError, match=r"replicates, and these have one; search with --replicates 4"):
        make_rule("race", 4, 1, 2, 0)


class Driver:
    """What a driver does with a race: workers, pauses, promotions, kills; every promotion is held against its rule."""

    def __init__(self, rng: random.Random, trials: int, replicates: int, failures: float) -> None:
        self.rng, self.trials, self.replicates, self.failures = rng, trials, replicates, failures
        true = [rng.gauss(0.8, 0.03) for _ in range(trials)]
        self.values = [[rng.gauss(mean, 0.03) for _ in range(replicates)] for mean in true]
        self.told: dict[int, int] = {}
        self.paused: set[int] = set()
        self.promoted: dict[int, int] = {}
        self.live: set[int] = set()
        self.full: set[int] = set()
        self.gone: dict[int, bool] = {}
        self.order: list[tuple[int, int | None]] = []
        self.new = list(range(trials))
        self.spent = 0
        self.rule = make_race(trials, replicates, epochs=1)

    def mean(self, number: int, replicate: int) -> float:
        return float(np.mean(self.values[number][:replicate]))

    def kill(self) -> None:
        """The next launch: a fresh rule is told what the record holds."""
        self.rule = make_race(self.trials, self.replicates, epochs=1)
        for number in self.told.keys() | self.live | self.gone.keys():
            self.rule.join(number, "")
        for number, replicate in self.order:
            if replicate is None:
                self.rule.ended(number, self.gone[number])
            elif replicate == self.replicates:
                self.rule.completed(number, self.mean(number, replicate), None)
            else:
                self.rule.decide(number, replicate, self.mean(number, replicate))
        for number, replicate in self.promoted.items():
            if number not in self.gone and number not in self.full:
                self.rule.promoted(number, replicate)

    def run(self, workers: int, kills: float) -> None:
        while True:
            if self.rng.random() < kills:
                self.kill()
            while len(self.live) < workers and self.start():
                pass
            if not self.live:
                return
            self.train(self.rng.choice(sorted(self.live)))

    def start(self) -> bool:
        if self.go_on(self.rule.promote()):
            return True
        if self.new:
            number = self.new.pop(0)
            self.rule.join(number, "")
            self.live.add(number)
            return True
        if self.live:
            return False
        return self.go_on(self.rule.promote_last())

    def go_on(self, named: Sequence[int]) -> bool:
        for number in named:
            assert number in self.paused
            self.check(number)
            self.spent += 1
            self.paused.remove(number)
            self.promoted[number] = self.told[number]
            self.rule.promoted(number, self.told[number])
            self.live.add(number)
        return bool(named)

    def check(self, number: int) -> None:
        """He leads, or is not below the leader by more than one error of the difference."""
        known = {n: self.values[n][:k] for n, k in self.told.items() if not self.gone.get(n, False)}
        found = standing(known)
        able = [place for place, n in enumerate(found.numbers) if n not in self.gone]
        leader = max(able, key=lambda place: found.means[place])
        place = found.numbers.index(number)
        assert found.means[leader] - found.means[place] <= ADMITTED * found.gap_errors(leader)[place] + 1e-9

    def train(self, number: int) -> None:
        self.live.remove(number)
        if self.rng.random() < self.failures:
            self.end(number, failed=True)
            return
        # from its checkpoint it tells again what was told
        for again in range(1, self.told.get(number, 0) + 1):
            assert self.rule.decide(number, again, self.mean(number, again)) is PAUSE
        replicate = self.told[number] = self.told.get(number, 0) + 1
        self.order.append((number, replicate))
        if replicate == self.replicates:
            self.full.add(number)
            self.rule.completed(number, self.mean(number, replicate), None)
            return
        decision = self.rule.decide(number, replicate, self.mean(number, replicate))
        assert decision is not CONTINUE
        if decision is STOP:
            self.end(number, failed=False)
        else:
            self.paused.add(number)

    def end(self, number: int, failed: bool) -> None:
        self.gone[number] = failed
        self.order.append((number, None))
        self.rule.ended(number, failed)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**9), st.integers(1, 14), st.integers(2, 4), st.integers(1, 3), st.sampled_from([0.0, 0.2]),
    st.sampled_from([0.0, 0.1]),
)  # fmt: skip
def test_a_race_keeps_its_promises_whatever_the_workers_and_kills(
    seed: int, trials: int, replicates: int, workers: int, kills: float, failures: float
) -> None:
    driver = Driver(random.Random(seed), trials, replicates, failures)
    driver.run(workers, kills)
    assert not driver.live and not driver.new
    survivors = [n for n in range(trials) if not driver.gone.get(n, False)]
    # some trial has all replicates, unless every one failed
    assert bool(driver.full) == bool(survivors)
    # what a failure cost is spent, and a leader that fell back on the way leaves another one to be brought to his end
    failed = sum(driver.gone.values())
    assert driver.spent <= further_replicates(trials, replicates) + (replicates - 1) * (failed + workers)


@pytest.mark.slow  # 300 searches, half a minute
@pytest.mark.timeout(600)
def test_a_race_finds_what_single_runs_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 150 drawn searches: 12 more at 36 trainings, and not many fewer at 12."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    simulation = importlib.import_module("simulate_race")

    def hits(trainings: int) -> tuple[int, int]:
        draw, found = simulation.drawing(np.random.default_rng(3), 0.03, 0.03, 0.3), [0, 0]
        for _ in range(150):
            drawn = draw()
            true, values = drawn[:, 0], drawn[:, 1:]
            for place, choose in enumerate((simulation.raced(3), simulation.single)):
                found[place] += bool(true[choose(values, trainings)] >= true.max() - 0.01)
        return found[0], found[1]

    by_race, by_single = hits(36)
    assert by_race >= by_single + 12
    by_race, by_single = hits(12)
    assert by_race >= by_single - 6


EPOCHS, REPLICATES = 2, 3


def told(epoch: int, value: float) -> dict[str, Any]:
    report = EpochReport(epoch, EPOCHS * REPLICATES, {OBJECTIVE: value}, {"seed42": [0.1, value]})
    return {VALUE: value, REPORT: report, "config/number": 0, "done": report.last}


def train(searcher: Any, trial_id: str, number: int, value: float) -> None:
    before = {epoch for other, epoch, _ in searcher.controller.history if other == number}
    for epoch in range(max(before, default=0) + 1, EPOCHS * REPLICATES):
        row = told(epoch, value)
        if searcher.controller.decide(number, row[REPORT]) is not CONTINUE:
            return searcher.on_trial_complete(trial_id, row)
        searcher.on_trial_result(trial_id, row)
    return searcher.on_trial_complete(trial_id, told(EPOCHS * REPLICATES, value))


@pytest.mark.parametrize("killed", [False, True])
def test_the_controller_runs_a_race_to_its_end(tmp_path: Path, killed: bool) -> None:
    """killed: the driver, before each step. The study's own replay repeats what happened."""
    study = make_study(tmp_path, FLAT, 5)
    values = [0.6, 0.81, 0.8, 0.5, 0.7]

    def rule() -> Rule:
        return make_race(5, REPLICATES, EPOCHS)

    searcher = open_searcher(study, rule=rule())
    for step in range(30):
        if killed:
            searcher.controller.record.flush()
            searcher = open_searcher(study, rule=rule())
        config = searcher.suggest(str(step))
        if config == Searcher.FINISHED:
            break
        assert isinstance(config, dict)
        train(searcher, str(step), config["number"], values[config["number"]])
    assert searcher.controller.end == End(EndReason.DONE)
    stored = searcher.controller.record.load()
    epochs = {trial.number: max(trial.intermediate_values) for trial in stored}
    assert [trial.number for trial in stored if trial.state.name == "COMPLETE"] == [1]
    assert epochs[1] == EPOCHS * REPLICATES and set(epochs.values()) <= {2, 4, 6}
    assert sum(epoch // EPOCHS - 1 for epoch in epochs.values()) <= further_replicates(5, REPLICATES)
    manifest = study.manifest.model_copy(update={"replicates": REPLICATES})
    outcomes = replay(curves_of(manifest, stored), rule(), range(5))
    assert {number: one.epoch for number, one in outcomes.items()} == epochs
    assert {number for number, one in outcomes.items() if one.fate is Fate.COMPLETE} == {1}
    searcher.controller.record.close()
