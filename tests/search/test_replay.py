"""A study under other schedulers: what really happened is repeated exactly, and what audited trials tell by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState
from scipy import stats
from typer.testing import CliRunner

from sctune.cli import app
from sctune.config import TrialConfig
from sctune.errors import ConfigError
from sctune.search.rules.audit import Audited, audited_rule, is_audited
from sctune.search.rules.base import Decision, Rule
from sctune.search.rules.registry import make_rule
from sctune.search.study.manifest import SchedulerSpec
from sctune.search.study.replay import Curve, Curves, Fate, Outcome, replay
from sctune.search.study.replayed import agreement, audit_of, differing, replayed
from tests.builders import ANYWHERE, FLAT, make_manifest, make_space
from tests.pages.studies import make_study, record_trial

EPOCHS = 9
RULES = ("asha", "hyperband", "median", "asha-promotion", "hyperband-promotion")


def fresh(name: str, audit: float = 0.0, factor: int = 3) -> Rule:
    rule = audited_rule(make_rule(name, EPOCHS, 1, factor, 7), audit, 7)
    assert rule is not None
    return rule


def search(rule: Rule, rng: random.Random, trials: int, workers: int) -> tuple[Curves, dict[int, Outcome]]:
    """A search as a driver runs it; what its record holds, and what became of each trial."""
    values = [[rng.randint(0, 9) / 10 for _ in range(EPOCHS)] for _ in range(trials)]
    points: dict[int, list[tuple[int, float]]] = {number: [] for number in range(trials)}
    order: list[int] = []
    new, waiting, live = list(range(trials)), [], set()
    ended: dict[int, Outcome] = {}
    paused: set[int] = set()

    def promote(named: list[int]) -> None:
        for number in named:
            if number in paused:
                paused.remove(number)
                waiting.append(number)

    def fill() -> None:
        promote(list(rule.promote()))
        while len(live) < workers and (waiting or new):
            number = waiting.pop(0) if waiting else new.pop(0)
            if not points[number]:
                rule.join(number, str(number % 2))
            live.add(number)

    fill()
    while live or paused:
        if not live:
            promote(list(rule.promote_last()))
            fill()
            if not live:
                break
            continue
        number = rng.choice(sorted(live))
        epoch = len(points[number]) + 1
        points[number].append((epoch, values[number][epoch - 1]))
        order.append(number)
        decision = Decision.CONTINUE if epoch == EPOCHS else rule.decide(number, *points[number][-1])
        if epoch == EPOCHS or decision is not Decision.CONTINUE:
            live.remove(number)
        if epoch == EPOCHS:
            ended[number] = Outcome(Fate.COMPLETE, epoch)
        elif decision is Decision.STOP:
            ended[number] = Outcome(Fate.STOPPED, epoch)
        elif decision is Decision.PAUSE:
            paused.add(number)
        fill()
    ended |= {number: Outcome(Fate.PAUSED, len(points[number])) for number in paused}
    states = {n: TrialState.COMPLETE if one.fate is Fate.COMPLETE else TrialState.PRUNED for n, one in ended.items()}
    curves = {n: Curve(n, str(n % 2), tuple(points[n]), states[n]) for n in range(trials)}
    return Curves(curves, tuple(order), EPOCHS), ended


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("audit", [0.0, 0.3])
def test_a_study_is_repeated_exactly_by_its_own_scheduler(name: str, audit: float) -> None:
    for seed in range(80):
        factor = 2 + seed % 2
        curves, happened = search(fresh(name, audit, factor), random.Random(seed), 1 + seed % 24, 1 + seed % 4)
        assert replay(curves, fresh(name, audit, factor)) == happened, seed


@pytest.mark.parametrize("name", RULES)
def test_a_rule_does_not_know_that_audited_trials_go_on(name: str) -> None:
    """All other trials end as they would had the audited ones been stopped: replayed without exceptions they do."""
    for seed in range(80):
        factor = 2 + seed % 2
        curves, happened = search(fresh(name, 0.3, factor), random.Random(seed), 12 + seed % 12, 2)
        plain = replay(curves, fresh(name, factor=factor))
        for number, outcome in happened.items():
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
    made = [
        curve(0, 0.6, 0.7, 0.8, 0.8, full=True),
        curve(1, 0.5, full=False),
        curve(2, 0.7, 0.6, 0.9, 0.7, full=True),
        curve(3, 0.8, 0.9, 0.6, 0.9, full=True),
    ]
    order = [number for epoch in range(4) for number in range(4) if len(made[number].points) > epoch]
    curves = Curves({one.number: one for one in made}, tuple(order), 4)

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
    made = {
        number: curve(
            number, start[number], *[ends.get(number, 0.0)] * (epochs - 1 if number in ends else 0), full=number in ends
        )
        for number in comes
    }
    order = [*comes, *(number for number in audited for _ in range(epochs - 1))]
    found = audit_of(manifest, Curves(made, tuple(order), epochs))
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
    assert agreement(curves[:3], 1).tau is None and agreement(curves, 2).tau == 1.0


def test_promote_last_passes_over_trials_that_never_paused() -> None:
    """The best of the paused is audited and has been going on: the next one is let go."""
    rule = make_rule("asha-promotion", EPOCHS, 1, 3, 0)
    assert rule is not None
    audited = Audited(rule, lambda number: number == 0)
    assert audited.decide(0, 1, 0.9) is Decision.CONTINUE and audited.decide(1, 1, 0.5) is Decision.PAUSE
    assert list(audited.promote()) == []
    assert list(audited.promote_last()) == []
    assert rule.decide(2, 1, 0.1) is Decision.PAUSE


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
    assert names == [("asha", 1, 2), ("asha", 1, 3), ("none", None, 3), ("median", 1, 2), ("median", 1, 3)]
    none = document["schedulers"][2]
    assert none["trials"]["1"] == {"fate": "UNKNOWN", "epoch": 1} and none["epochs"] == {
        "spent": 9,
        "most": 12,
        "full": 12,
    }
    # all values are equal, so that nobody was below a bar: that trial 1 was stopped is not ASHA's doing
    assert document["agrees"] is False and document["differing"] == [1] and document["audit"] is None
    shown = run()
    assert "asha" in shown and "the study gives not what happened to trials 1" in shown
    for words, message in (
        (("--factor", "two"), "--factor 'two': give whole numbers"),
        (("--scheduler", "asja"), "did you mean 'asha'"),
        (("--grace", "9"), "grace=9 must be in 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(*words)
    manifest = study.manifest
    assert differing(manifest, Curves({}, (), 4)) == []
