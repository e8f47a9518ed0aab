"""A study under other schedulers: what really happened is repeated exactly, and what audited trials tell by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState
from scipy import stats
from typer.testing import CliRunner

from sctune.cli import app
from sctune.config import TrialConfig
from sctune.errors import ConfigError
from sctune.search.rules.audit import audited_rule, is_audited
from sctune.search.rules.base import Decision, Rule
from sctune.search.rules.registry import make_rule
from sctune.search.study.manifest import SchedulerSpec
from sctune.search.study.replay import Curve, Curves, Fate, Outcome, replay
from sctune.search.study.replayed import agreement, audit_of, replayed
from tests.builders import ANYWHERE, FLAT, make_manifest, make_space
from tests.pages.studies import make_study, record_trial

EPOCHS = 9
RULES = ("asha", "hyperband", "median", "asha-promotion", "hyperband-promotion")
NOISY = ("asha .6", "hyperband .6", "median .6")
"""With a stop confidence, as the command says it."""


def fresh(name: str, audit: float = 0.0, factor: int = 3) -> Rule:
    name, _, confidence = name.partition(" ")
    asked = float(confidence) if confidence else None
    rule = audited_rule(make_rule(name, EPOCHS, 1, factor, 7, confidence=asked), audit, 7)
    assert rule is not None
    return rule


def error(number: int) -> float | None:
    """Of a full run; some have none."""
    return None if number % 3 == 0 else number % 5 / 20


class Search:
    """A search as `TrialController` runs it, as far as a rule can tell; with kills, failures and a second launch.

    The rule is asked to promote where a worker is free and some trial is paused, and to promote the last where nothing
    else is left, as there. What the record would hold is in `curves`, what became of each trial in `ended`.
    """

    def __init__(self, make: Callable[[], Rule], rng: random.Random, workers: int, trouble: float = 0.0) -> None:
        self.make, self.rng, self.workers, self.trouble = make, rng, workers, trouble
        self.points: dict[int, list[tuple[int, float]]] = {}
        self.order: list[tuple[int, bool]] = []
        self.ended: dict[int, Outcome] = {}
        self.promoted: dict[int, int] = {}
        self.paused: list[int] = []
        self.waiting: list[int] = []
        self.live: set[int] = set()
        self.rule = make()

    def launch(self, trials: int) -> Search:
        new = list(range(len(self.points), trials))
        self.reopen()
        while True:
            if self.rng.random() < self.trouble:
                self.reopen()
            self.fill(new)
            if not self.live:
                break
            self.report(self.rng.choice(sorted(self.live)))
        for number in self.paused:
            self.end(number, Fate.PAUSED)
        self.paused = []
        return self

    def reopen(self) -> None:
        """The driver was killed, and the next one reads the record: who was live goes on."""
        self.rule = self.make()
        for number in self.points:
            self.rule.join(number, str(number % 2))
        told = dict.fromkeys(self.points, 0)
        for number, end in self.order:
            if end:
                self.rule.ended(number, self.ended[number].fate is Fate.FAILED)
            elif self.points[number][told[number]][0] == EPOCHS:
                self.rule.completed(number, self.points[number][-1][1], error(number))
            else:
                self.rule.decide(number, *self.points[number][told[number]])
                told[number] += 1
        for number, epoch in self.promoted.items():
            if number not in self.ended:
                self.rule.promoted(number, epoch)

    def fill(self, new: list[int]) -> None:
        while len(self.live) < self.workers:
            self.promote(self.rule.promote() if self.paused else ())
            idle = not self.waiting and not new
            if idle and (self.live or not self.paused or not self.promote(self.rule.promote_last())):
                return
            if self.waiting:
                self.live.add(self.waiting.pop(0))
                continue
            number = new.pop(0)
            self.points[number] = []
            self.rule.join(number, str(number % 2))
            self.live.add(number)

    def promote(self, named: Iterable[int]) -> bool:
        chosen = [number for number in dict.fromkeys(named) if number in self.paused]
        for number in chosen:
            self.paused.remove(number)
            self.waiting.append(number)
            self.promoted[number] = len(self.points[number])
        return bool(chosen)

    def report(self, number: int) -> None:
        if self.rng.random() < self.trouble / 4:
            self.end(number, Fate.FAILED)
            return
        epoch, value = len(self.points[number]) + 1, self.rng.randint(0, 9) / 10
        self.points[number].append((epoch, value))
        self.order.append((number, False))
        decision = Decision.CONTINUE if epoch == EPOCHS else self.rule.decide(number, epoch, value)
        if epoch == EPOCHS:
            self.end(number, Fate.COMPLETE)
        elif decision is Decision.STOP:
            self.end(number, Fate.STOPPED)
        elif decision is Decision.PAUSE:
            self.live.remove(number)
            self.paused.append(number)

    def end(self, number: int, fate: Fate) -> None:
        self.live.discard(number)
        self.ended[number] = Outcome(fate, len(self.points[number]))
        if fate is Fate.COMPLETE:
            self.rule.completed(number, self.points[number][-1][1], error(number))
        else:
            self.order.append((number, True))
            self.rule.ended(number, fate is Fate.FAILED)

    @property
    def curves(self) -> Curves:
        states = {Fate.COMPLETE: TrialState.COMPLETE, Fate.FAILED: TrialState.FAIL}
        found = {
            number: Curve(
                number,
                str(number % 2),
                tuple(points),
                states.get(self.ended[number].fate, TrialState.PRUNED),
                self.promoted.get(number, 0),
                error(number),
            )
            for number, points in self.points.items()
        }
        return Curves(found, tuple(self.order), EPOCHS)


def made(name: str, audit: float, factor: int) -> Callable[[], Rule]:
    return lambda: fresh(name, audit, factor)


@pytest.mark.parametrize(
    ("name", "audit", "trouble"),
    [
        *((name, *how) for name in (*RULES, *NOISY) for how in ((0.0, 0.0), (0.3, 0.0), (0.0, 0.2))),
        # where audited trials would have been promoted, a driver that was killed may believe another order of events
        *((name, 0.3, 0.2) for name in (*RULES, *NOISY) if "promotion" not in name),
    ],
)
def test_a_study_is_repeated_exactly_by_its_own_scheduler(name: str, audit: float, trouble: float) -> None:
    for seed in range(60):
        make = made(name, audit, 2 + seed % 2)
        search = Search(make, random.Random(seed), 1 + seed % 4, trouble).launch(1 + seed % 24)
        assert replay(search.curves, make(), search.points) == search.ended, seed


@pytest.mark.parametrize("name", (*RULES, *NOISY))
def test_so_is_one_that_went_on_after_its_end(name: str) -> None:
    for seed in range(60):
        make = made(name, 0.0, 2 + seed % 2)
        search = Search(make, random.Random(seed), 2, 0.1).launch(8).launch(16)
        found = replay(search.curves, make(), search.points)
        assert [n for n in search.ended if found[n] != search.ended[n]] == [], seed


@pytest.mark.parametrize("name", ["asha-promotion", "hyperband-promotion"])
@pytest.mark.parametrize("audit", [0.0, 0.3])
def test_a_search_has_full_runs_unless_every_one_failed(name: str, audit: float) -> None:
    """Whoever fails on the way, another takes its place; and nobody waits who is among the best of its rung."""
    for seed in range(120):
        make = made(name, audit, 2 + seed % 3)
        search = Search(make, random.Random(seed), 1 + seed % 3, 0.4).launch(1 + seed % 9)
        fates = {one.fate for one in search.ended.values()}
        assert Fate.COMPLETE in fates or fates == {Fate.FAILED}, seed


@pytest.mark.parametrize("name", (*RULES, *NOISY))
def test_a_rule_does_not_know_that_audited_trials_go_on(name: str) -> None:
    """All other trials end as they would had the audited ones been stopped: replayed without exceptions they do."""
    for seed in range(80):
        factor = 2 + seed % 2
        search = Search(made(name, 0.3, factor), random.Random(seed), 2).launch(12 + seed % 12)
        plain = replay(search.curves, fresh(name, factor=factor))
        for number, outcome in search.ended.items():
            if is_audited(number, 0.3, 7):
                assert outcome == Outcome(Fate.COMPLETE, EPOCHS), seed
            else:
                assert plain[number] == outcome, (seed, number)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 1.0])
def test_the_share_is_kept_in_every_stretch_of_trials(share: float) -> None:
    drawn = np.array([[is_audited(number, share, seed) for number in range(400)] for seed in range(30)])
    for length in (10, 100):
        counts = drawn.reshape(30, -1, length).sum(axis=2)
        assert abs(counts - share * length).max() <= 1 + 1e-9
    # which ones is the seed's choice, and each is as likely
    assert share == 1.0 or len(np.unique(drawn, axis=0)) > 1
    assert not any(is_audited(number, 0.0, 0) for number in range(100))


def curve(number: int, *values: float, full: bool) -> Curve:
    state = TrialState.COMPLETE if full else TrialState.PRUNED
    return Curve(number, "deviation", tuple(enumerate(values, 1)), state)


def test_another_scheduler_by_hand(tmp_path: Path) -> None:
    """Trial 1 was stopped at epoch 1; what a scheduler that lets it pass would have seen of it is not known."""
    stored = [
        curve(0, 0.6, 0.7, 0.8, 0.8, full=True),
        curve(1, 0.5, full=False),
        curve(2, 0.7, 0.6, 0.9, 0.7, full=True),
        curve(3, 0.8, 0.9, 0.6, 0.9, full=True),
    ]
    order = [(number, False) for epoch in range(4) for number in range(4) if len(stored[number].points) > epoch]
    curves = Curves({one.number: one for one in stored}, tuple(order), 4)

    def fates(name: str, grace: int = 1) -> dict[int, tuple[Fate, int]]:
        outcomes = replay(curves, make_rule(name, 4, grace, 2, 0))
        return {number: (one.fate, one.epoch) for number, one in outcomes.items()}

    whole = (Fate.COMPLETE, 4)
    assert fates("asha") == {0: whole, 1: (Fate.STOPPED, 1), 2: (Fate.STOPPED, 2), 3: whole}
    assert fates("asha", 2) == {0: whole, 1: (Fate.UNKNOWN, 1), 2: (Fate.STOPPED, 2), 3: whole}
    assert fates("none") == {0: whole, 1: (Fate.UNKNOWN, 1), 2: whole, 3: whole}
    assert fates("asha-promotion", 2) == {
        0: whole, 1: (Fate.UNKNOWN, 1), 2: (Fate.PAUSED, 2), 3: whole,
    }  # fmt: skip
    manifest = make_manifest(make_space(tmp_path, parameters=FLAT, set=ANYWHERE), trials=4)
    row = replayed(manifest, curves, SchedulerSpec(name="asha", grace=2, factor=2))
    assert (row.spent, row.most, row.full) == (4 + 1 + 2 + 4, 4 + 4 + 2 + 4, 16)
    assert (row.best, row.value, row.regret, row.count(Fate.UNKNOWN)) == (3, 0.9, 0.0, 1)
    assert row.saved == pytest.approx((2 / 16, 5 / 16))
    nobody = replayed(manifest, Curves({}, (), 4), SchedulerSpec(name="asha"))
    assert (nobody.best, nobody.regret, nobody.saved) == (None, None, (0.0, 0.0))
    with pytest.raises(ConfigError, match="grace=5 must be in 1"):
        replayed(manifest, curves, SchedulerSpec(name="asha", grace=5))


def test_what_audited_trials_tell_by_hand(tmp_path: Path) -> None:
    """Half of the trials are audited: 1, 3, 5 or 0, 2, 4."""
    manifest = make_manifest(
        make_space(tmp_path, parameters=FLAT, set=ANYWHERE),
        trials=8,
        scheduler=SchedulerSpec(name="asha", grace=1, factor=2),
        audit=0.5,
    )
    epochs = manifest.trial_config().epochs
    audited = [number for number in range(8) if is_audited(number, 0.5, manifest.sampler_seed)]
    # who comes later is worse at epoch 1, so that all but the first are below the bar; three of them go on all the same
    comes = [audited[0], *(number for number in range(8) if number != audited[0])]
    start = {number: 0.9 - place / 10 for place, number in enumerate(comes)}
    ends = dict(zip(audited, (0.5, 0.6, 0.4, 0.7), strict=True))
    stored = {
        number: curve(
            number, start[number], *[ends.get(number, 0.0)] * (epochs - 1 if number in ends else 0), full=number in ends
        )
        for number in comes
    }
    order = [*comes, *(number for number in audited for _ in range(epochs - 1))]
    found = audit_of(manifest, Curves(stored, tuple((number, False) for number in order), epochs))
    assert found is not None
    # let through is the first alone, which ends at 0.5
    assert (found.trials, found.stopped, found.better, found.really_stopped) == (4, 3, 2, 4)
    assert found.cost == 3 * (epochs - 1)
    # two of three, the interval of Clopper and Pearson; at least one of four
    low, high = stats.beta.ppf(0.025, 2, 2), stats.beta.ppf(0.975, 3, 1)
    assert found.lost == pytest.approx(tuple(1 - (1 - share) ** 4 for share in (2 / 3, low, high)))
    plain = make_manifest(
        make_space(tmp_path, parameters=FLAT, set=ANYWHERE), trials=8, scheduler=SchedulerSpec(name="asha")
    )
    assert audit_of(plain, Curves({}, (), epochs)) is None


def test_agreement_of_a_rung_is_kendalls_tau_of_full_curves() -> None:
    rng = np.random.default_rng(3)
    start, noise = rng.normal(size=30), rng.normal(size=30)
    curves = [curve(number, start[number], start[number] + noise[number], full=True) for number in range(30)]
    found = agreement(curves, 1)
    assert found.tau == pytest.approx(stats.kendalltau(start, start + noise).statistic)
    assert found.low is not None and found.high is not None and found.tau is not None
    assert found.low < found.tau < found.high < 1 and found.trials == 30
    # the last epoch is no rung
    assert agreement(curves[:3], 1).tau is None and agreement(curves, 2).trials == 0


def test_a_rung_whose_promoted_trial_failed_gives_another_one() -> None:
    rule = make_rule("asha-promotion", EPOCHS, 1, 3, 0)
    assert rule is not None
    assert [rule.decide(number, 1, value) for number, value in ((0, 0.5), (1, 0.9))] == [Decision.PAUSE] * 2
    assert list(rule.promote()) == [] and list(rule.promote_last()) == [1]
    rule.ended(1, failed=True)
    assert list(rule.promote()) == [] and list(rule.promote_last()) == [0]
    # who ended paused takes nobody's place in a launch that goes on
    other = make_rule("asha-promotion", EPOCHS, 1, 2, 0)
    assert other is not None
    assert [other.decide(number, 1, value) for number, value in ((0, 0.9), (1, 0.8))] == [Decision.PAUSE] * 2
    other.ended(0, failed=False)
    assert list(other.promote()) == [1]


def test_the_command(tmp_path: Path, tiny: TrialConfig) -> None:
    root = tmp_path / "studies"
    study = make_study(root, tiny.override({"budget.epochs": 4}), trials=3)
    for number, epochs in ((0, 4), (1, 1), (2, 4)):
        params = {"augment.threshold": 0.2 + number / 10, "optim.lr": 1e-3}
        record_trial(study, number, TrialState.COMPLETE if epochs == 4 else TrialState.PRUNED, params, epochs)
    study.record.close()

    def run(*words: str) -> str:
        every = ["replay", study.name, "--study-root", str(root), *words]
        return CliRunner().invoke(app, every, catch_exceptions=False, env={"COLUMNS": "140"}).stdout

    document = json.loads(run("--scheduler", "asha,none,median", "--factor", "2,3", "--json"))
    names = [(row["name"], row["grace"], row["factor"]) for row in document["schedulers"]]
    # first as it was
    assert names == [
        ("asha", 1, 2),
        ("asha", 1, 2),
        ("asha", 1, 3),
        ("none", None, 3),
        ("median", 1, 2),
        ("median", 1, 3),
    ]
    none = document["schedulers"][3]
    assert none["trials"]["1"] == {"fate": "UNKNOWN", "epoch": 1} and none["epochs"] == {
        "spent": 9,
        "most": 12,
        "full": 12,
    }
    # all values are equal, so that nobody was below a bar: that trial 1 was stopped is not ASHA's doing
    assert document["agrees"] is False and document["differing"] == [1] and document["audit"] is None
    certain = json.loads(run("--stop-confidence", ".5,0.95", "--scheduler", "asha,none", "--json"))["schedulers"]
    assert [(row["name"], row["stop_confidence"]) for row in certain] == [
        ("asha", None),
        ("asha", 0.5),
        ("asha", 0.95),
        ("none", None),
    ]
    assert "asha, 1, 2, 0.95" in run("--stop-confidence", "0.95")
    shown = run()
    assert "confidence" not in shown
    assert "asha" in shown and "the study gives not what happened to trials 1" in shown
    for words, message in (
        (("--factor", "two"), "--factor 'two': give whole numbers"),
        (("--factor", "0"), "factor=0 must be 2 or more"),
        (("--scheduler", "asja"), "did you mean 'asha'"),
        (("--grace", "9"), "grace=9 must be in 1"),
        (("--stop-confidence", "much"), "--stop-confidence 'much': give numbers"),
        (("--stop-confidence", "1"), "--stop-confidence 1: give a chance from 0.5 to below 1"),
        (
            ("--stop-confidence", ".8", "--scheduler", "asha-promotion"),
            "--stop-confidence 0.8: scheduler asha-promotion",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            run(*words)
