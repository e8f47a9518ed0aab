"""Searches on recorded tables: by hand, against the rules told one by one, and what a table knows of its truth."""

from __future__ import annotations

import importlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from scipy import stats

from sctune.errors import ConfigError, DataError
from sctune.search.rules.base import Decision
from sctune.search.rules.registry import make_rule
from sctune.search.run.controller import EndReason
from sctune.search.simulate import compare as comparison
from sctune.search.simulate.course import Simulated
from sctune.search.simulate.on_table import TableSearch, Way
from sctune.search.simulate.table import RecordedTable, load_table
from sctune.search.simulate.truth import chance, difference, truth_of
from sctune.search.space.finite import confined
from sctune.search.study.manifest import SchedulerSpec
from sctune.search.suggest.samplers import SAMPLERS
from tests.builders import make_space
from tests.conftest import Command
from tests.search.tables import drawn_values, make_table, one_choice

NONE, ASHA = SchedulerSpec(name="none"), SchedulerSpec(name="asha", grace=1, factor=2)
RACE = SchedulerSpec(name="race", grace=1, factor=2)
MIXED = {
    "augment.threshold": {"type": "float", "low": 0.1, "high": 0.9},
    "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
    "model.heads": {"type": "categorical", "choices": ["two_head_patch", "four_head"]},
    "model.reference_count": {"type": "ordinal", "choices": [1, 3, 5, 10], "when": {"model.heads": "four_head"}},
}


def mixed_points(count: int) -> list[dict[str, Any]]:
    rng, found = np.random.default_rng(1), []
    for number in range(count):
        heads = ("two_head_patch", "four_head")[number % 2]
        found.append(
            {
                "augment.threshold": float(rng.uniform(0.1, 0.9)),
                "optim.lr": float(10 ** rng.uniform(-5, -3)),
                "model.heads": heads,
                **({"model.reference_count": (1, 3, 5, 10)[number // 2 % 4]} if number % 2 else {}),
            }
        )
    return found


@pytest.fixture
def noisy(tmp_path: Path) -> RecordedTable:
    rng = np.random.default_rng(0)
    values = drawn_values(rng, rng.normal(0.85, 0.03, 16), 5, 4, 0.02, 0.02, rung_error=0.01)
    return make_table(tmp_path, values, MIXED, mixed_points(16), scored=20)


def noise_free(tmp_path: Path, merits: list[float], epochs: int = 1) -> RecordedTable:
    parameters, points = one_choice(len(merits))
    values = np.broadcast_to(np.array(merits)[:, None, None], (len(merits), 4, epochs))
    return make_table(tmp_path, values, parameters, points)


def test_without_noise_the_best_of_those_that_were_tried_is_found(tmp_path: Path) -> None:
    merits = [0.7, 0.9, 0.8, 0.5, 0.85, 0.6]
    table = noise_free(tmp_path, merits, epochs=3)
    for way in (Way("tpe", NONE, 1, 6), Way("tpe", NONE, 3, 6), Way("random", RACE, 3, 6)):
        for number in range(3):
            best = TableSearch(table, way).run(number).best(table.objective)
            assert best is not None and best.place == 1 and best.value == pytest.approx(0.9)
    near = truth_of(table, 0.06).near
    # a weak prior keeps some noise where there are four seeds of six configurations
    assert near[1] == 1 and near[4] > 0.8 and near[[0, 3, 5]].max() < 0.02


def test_random_search_has_the_chance_of_drawing_without_putting_back(tmp_path: Path) -> None:
    """Two of ten are near the best, four are drawn: 1 - C(8, 4) / C(10, 4)."""
    table = noise_free(tmp_path, [0.9, 0.895, *np.linspace(0.5, 0.8, 8)])
    search, count = TableSearch(table, Way("random", NONE, 1, 4)), 400
    runs = [search.run(number) for number in range(count)]
    hits = sum(any(trial.place < 2 for trial in run.trials) for run in runs)
    expected = 1 - math.comb(8, 4) / math.comb(10, 4)
    assert abs(hits / count - expected) < 3.5 * math.sqrt(expected * (1 - expected) / count)
    # and each place comes first as often as any other
    firsts = np.bincount([run.trials[0].place for run in runs], minlength=10)
    assert stats.chisquare(firsts).pvalue > 1e-3
    assert all(len({trial.place for trial in run.trials}) == 4 for run in runs)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_every_sampler_comes_to_every_configuration_once(noisy: RecordedTable, sampler: str) -> None:
    run = TableSearch(noisy, Way(sampler, NONE, 1, 99)).run(0)
    assert sorted(trial.place for trial in run.trials) == list(range(16))
    assert run.reason is EndReason.EXHAUSTED and run.epochs == 16 * 4
    best = run.best(noisy.objective)
    seed = np.flatnonzero(([t.value for t in run.trials] == noisy.ends[[trial.place for trial in run.trials]].T).all(1))
    assert best is not None and len(seed) == 1 and best.place == int(np.argmax(noisy.ends[:, seed[0]]))
    # the nearest of all is no farther than the nearest that is left
    moved = [trial.moved for trial in run.trials if trial.moved is not None]
    assert all(0 <= one.nearest <= one.taken <= 1 for one in moved) and len(moved) == 16


def test_distances_by_hand(tmp_path: Path) -> None:
    space = make_space(tmp_path, parameters=MIXED)
    two = {"augment.threshold": 0.1, "optim.lr": 1e-5, "model.heads": "two_head_patch"}
    four = {"augment.threshold": 0.5, "optim.lr": 1e-4, "model.heads": "four_head", "model.reference_count": 1}
    far = {**four, "augment.threshold": 0.9, "model.reference_count": 10}
    finite = confined(space, [two, four, far])
    # half of the range, half of the decades, other heads, and a count that one of them has
    assert finite.distances(two).tolist() == pytest.approx([0, (0.5 + 0.5 + 1 + 1) / 4, (1 + 0.5 + 1 + 1) / 4])
    # four ordered choices lie in the middles of quarters
    assert finite.distances(four).tolist() == pytest.approx([0.75, 0, (0.5 + 0.75) / 4])
    assert [finite.place(point) for point in (two, four, far)] == [0, 1, 2] and finite.size() == 3
    with pytest.raises(KeyError):
        finite.place({**two, "augment.threshold": 0.11})


def test_start_points_come_first_where_the_table_has_them(tmp_path: Path) -> None:
    parameters, points = one_choice(5)
    start = [{"augment.threshold": 0.31}, points[3]]
    parameters["augment.threshold"]["choices"].append(0.31)  # the table has no such configuration
    values = np.full((5, 2, 1), 0.5)
    table = make_table(tmp_path, values, parameters, points, start=start)
    assert [TableSearch(table, Way("tpe", NONE, 1, 1)).run(n).trials[0].place for n in range(4)] == [3] * 4


def test_replicates_are_means_over_the_same_seeds(noisy: RecordedTable) -> None:
    one, three = (TableSearch(noisy, Way("random", NONE, count, 5)).run(7) for count in (1, 3))
    assert one.epochs == 5 * 4 and three.epochs == 5 * 12
    assert [trial.place for trial in one.trials] == [trial.place for trial in three.trials]
    order = np.random.default_rng([7, 5]).permutation(5)[:3]
    for single, mean in zip(one.trials, three.trials, strict=True):
        assert single.value == noisy.ends[single.place, order[0]]
        assert mean.value == pytest.approx(noisy.ends[mean.place, order].mean(), abs=1e-9)


def test_a_rule_decides_as_it_does_when_it_is_told_by_itself(noisy: RecordedTable) -> None:
    search = TableSearch(noisy, Way("tpe", ASHA, 1, 16))
    for number in range(4):
        run = search.run(number)
        rule = make_rule("asha", 4, 1, 2, number, behind=2)
        assert rule is not None
        seed = int(np.random.default_rng([number, 5]).permutation(5)[0])
        told = []
        for trial, found in enumerate(run.trials):
            curve = noisy.values[found.place, seed]
            stops = (e for e in range(1, 4) if rule.decide(trial, e, curve[e - 1]) is Decision.STOP)
            told.append(next(stops, 4))
        assert [trial.epochs for trial in run.trials] == told
        states = {TrialState.COMPLETE: 4, TrialState.PRUNED: range(1, 4)}
        assert all(one.epochs == 4 or one.epochs in states[TrialState.PRUNED] for one in run.trials)
        assert {one.state for one in run.trials} == set(states)


def test_a_race_is_that_of_the_rule_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks/simulate_race.py` tells the rule by itself: on the same values it chooses the same."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    simulation = importlib.import_module("simulate_race")
    parameters, points = one_choice(20)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        values = drawn_values(rng, rng.normal(0.8, 0.03, 20), 4, 1, 0.025, 0.015)
        table = make_table(tmp_path, values, parameters, points)
        run = TableSearch(table, Way("random", RACE, 3, 12)).run(seed)
        best, order = run.best(table.objective), np.random.default_rng([seed, 5]).permutation(4)[:3]
        drawn = table.ends[[trial.place for trial in run.trials]][:, order]
        assert best is not None and run.trials.index(best) == simulation.race(drawn)
        assert len(run.trials) == 12 and run.epochs <= 18


def test_the_clock(tmp_path: Path) -> None:
    table = noise_free(tmp_path, [0.5, 0.6, 0.7, 0.8], epochs=3)  # a second each
    one = TableSearch(table, Way("random", NONE, 1, 3)).run(0)
    assert one.seconds == one.busy == 9
    two = TableSearch(table, Way("random", NONE, 1, 3, slots=2)).run(0)
    assert two.seconds == 6 and two.busy == 9
    three = TableSearch(table, Way("random", NONE, 2, 3, slots=3)).run(0)
    assert three.seconds == 6 and three.busy == 18


def test_a_search_ends_by_itself_and_stops_with_confidence(tmp_path: Path) -> None:
    parameters, points = one_choice(40)
    rng = np.random.default_rng(0)
    values = drawn_values(rng, np.full(40, 0.9), 2, 2, 1e-4, 0, rung_error=1e-4)
    table = make_table(tmp_path, values, parameters, points, scored=20)
    run = TableSearch(table, Way("random", NONE, 1, 40, min_gain=0.002)).run(0)
    assert run.reason is EndReason.LITTLE_GAIN and len(run.trials) == 20
    spec = ASHA.model_copy(update={"stop_confidence": 0.95})
    sure, plain = (TableSearch(table, Way("random", one, 1, 40)).run(0) for one in (spec, ASHA))
    # scores of noise tell nothing apart
    assert _stopped(sure) < _stopped(plain)


def _stopped(run: Simulated) -> int:
    return sum(trial.state is TrialState.PRUNED for trial in run.trials)


def test_what_cannot_be_is_refused(noisy: RecordedTable) -> None:
    for way, said in (
        (Way("random", NONE, 6), r"6 replicates: the table has 5 seed"),
        (Way("random", RACE, 1), "compares trials over replicates"),
        (Way("grid", NONE), "sampler grid"),
        (Way("tpo", NONE), "unknown sampler 'tpo'"),
        (Way("tpe", ASHA.model_copy(update={"grace": 9})), "grace=9"),
    ):
        with pytest.raises(ConfigError, match=said):
            TableSearch(noisy, way)


def test_a_table_is_read_as_it_was_written(noisy: RecordedTable, tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    noisy.save(path)
    again = load_table(path)
    assert again.about == noisy.about and again.space.configurations == noisy.space.configurations
    for one, other in ((again.values, noisy.values), (again.scores["seed101"], noisy.scores["seed101"])):
        np.testing.assert_array_equal(one, other)
    first = TableSearch(again, Way("tpe", ASHA, 1, 9)).run(3)
    assert first == TableSearch(noisy, Way("tpe", ASHA, 1, 9)).run(3)
    with np.load(path, allow_pickle=False) as plain:
        assert json.loads(str(plain["about"]))["seeds"] == [101, 102, 103, 104, 105]


def test_what_is_no_table_is_said(noisy: RecordedTable, tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    with pytest.raises(DataError, match="is no recorded table"):
        load_table(path)
    path.write_text("nothing")
    with pytest.raises(DataError, match="is no recorded table"):
        load_table(path)
    holed = noisy.values.copy()
    holed[3, 2, 1] = np.nan
    for changes, said in (
        ({"values": holed}, "an epoch in the middle"),
        ({"memory_mb": np.zeros((2, 2))}, "not of 16 configurations and 5 seeds"),
    ):
        RecordedTable(**{**vars(noisy), **changes}).save(path)
        with pytest.raises(DataError, match=said):
            load_table(path)


def test_chances_and_differences() -> None:
    for hits in ([1.0] * 7 + [0.0] * 13, [0.0] * 5, [1.0] * 5):
        found, exact = chance(hits), stats.binomtest(int(sum(hits)), len(hits)).proportion_ci(0.95)
        # of yes and no as many searches as there are, but for n - 1
        assert found.value == np.mean(hits)
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.02)
    # half a hit each says more than every other one
    assert chance([0.4, 0.6] * 10).high < chance([0.0, 1.0] * 10).high
    gap = difference([1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0])
    test = stats.ttest_1samp([1, 0, 0, 1], 0).confidence_interval(0.95)
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.5, test.low, test.high))


def test_the_truth_of_a_noisy_table_is_right_on_average(tmp_path: Path) -> None:
    """Whatever chooses by the same values: what is said to be a hit is one as often as it is said."""
    parameters, points = one_choice(12)
    said, hit = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        true = rng.normal(0.8, 0.02, 12)
        table = make_table(tmp_path, drawn_values(rng, true, 6, 1, 0.03, 0.02), parameters, points)
        chosen = int(np.argmax(table.ends.mean(axis=1)))
        said.append(truth_of(table, 0.01).near[chosen])
        hit.append(true[chosen] >= true.max() - 0.01)
    assert np.mean(said) == pytest.approx(np.mean(hit), abs=0.16)
    # while of the means themselves it would always be one
    assert np.mean(hit) < 0.9


def test_ways_have_equal_compute(noisy: RecordedTable, tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    noisy.save(path)
    ways = [Way("random", NONE, 1), Way("random", ASHA, 1), Way("random", NONE, 3), Way("random", RACE, 3)]
    with comparison.searches(noisy, path, 1) as found:
        cells = comparison.compare(found, ways, [9], 10, lambda _cell: None)
        assert found.cell(Way("random", NONE, 1, 5), 3, None).trained == 5
    assert [cell.way.trials for cell in cells[::2]] == [9, 3]
    assert cells[1].way.trials > 9 and all(cell.trained <= 9 for cell in cells)
    assert cells[0].trained == 9 and cells[1].trained > 8
    truth = truth_of(noisy, 0.01)
    lines = comparison.lines_of(cells, truth)
    assert len(lines) == 2 + 4 + 1 + 2 + 3 and all(line.count("|") == 8 for line in lines[:6])
    gap = difference(cells[3].hits(truth), cells[0].hits(truth))
    assert lines[-1].startswith("| 9 | 4. random, race 1/2, 3 replicate(s) | ")
    assert f"{100 * gap.value:+.0f} ({100 * gap.low:+.0f} to {100 * gap.high:+.0f})" in lines[-1]
    # in workers it is the same
    comparison._open(path)
    with ThreadPoolExecutor(2) as pool:
        assert comparison.Searches(noisy, pool).run(cells[1].way, 12)[:10] == cells[1].searches


def test_the_command(noisy: RecordedTable, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "table.npz"
    noisy.save(path)
    code, out, err = command("simulate", path, "--repeat", 2, "--trainings", "6", "--json")
    document = json.loads(out)
    asked = [(way["sampler"], way["scheduler"]["name"], way["replicates"]) for way in document["ways"]]
    assert code == 0 and len(err.splitlines()) == 4
    assert asked == [("random", "none", 1), ("tpe", "asha", 1), ("tpe", "none", 3), ("tpe", "race", 4)]
    assert document["seeds"] == 5 and all(0 <= way["chance"]["value"] <= 1 for way in document["ways"])
    code, out, _ = command(
        "simulate", path, "--sampler", "tpe,random", "--scheduler", "none,race", "--replicates", "1,2", "--trials", 3,
        "--repeat", 2,
    )  # fmt: skip
    # a race of one replicate is none
    assert code == 0 and out.count("| - | ") == 6 + 5 and "race 2/2, 2 replicate(s)" in out
    for words, said in (
        (("--replicates", "7", "--sampler", "random"), "7 replicates: the table has 5 seed(s)"),
        (("--trainings", "many"), "--trainings 'many'"),
        (("--trainings", "12,0"), "--trainings 12,0: one training is the least"),
        (("--scheduler", "race"), "--replicates: give 1 or more"),
        (("--scheduler", "ashe"), "unknown scheduler 'ashe'"),
    ):
        code, out, err = command("simulate", path, "--repeat", 2, *words)
        assert code == 2 and said in err.replace("\n", " ") and not out
