"""Standard deviations by hand, and bootstrap intervals against scikit-learn on the same resamples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from sctune.train.statistics import Scores, bootstrap_interval, pooled_std, spread, weighted_auroc


def make_scores(seed: int, normal: int, anomalous: int, shift: float, subset: str = "a", pool: str = "set") -> Scores:
    random = np.random.default_rng(seed)
    labels = np.array([0] * normal + [1] * anomalous)
    # one decimal: some scores are equal
    scores = np.round(random.normal(size=len(labels)) + shift * labels, 1)
    return Scores(pool, subset, tuple(f"{number:04d}.png" for number in range(len(labels))), labels, scores)


def test_the_three_deviations_by_hand() -> None:
    # two subsets with two trials each
    found = spread([[0.9, 0.7], [0.5, 0.5]])
    assert found.trials == pytest.approx(0.05)  # means over subsets: 0.7 and 0.6
    assert found.subsets == pytest.approx(0.15)  # means over trials: 0.8 and 0.5
    assert found.pooled == pytest.approx(np.sqrt((0.25**2 + 0.05**2 + 2 * 0.15**2) / 4))  # about 0.65


def test_deviations_of_one_subset_or_one_trial() -> None:
    row = spread([[0.8, 0.9, 1.0]])
    assert row.trials == row.pooled == pytest.approx(np.sqrt(0.02 / 3))
    assert row.subsets is None
    one = spread([[0.8], [0.6]])
    assert (one.trials, one.subsets, one.pooled) == (None, pytest.approx(0.1), pytest.approx(0.1))
    assert spread([[0.8]]).pooled is None


def test_uneven_trials_are_refused() -> None:
    with pytest.raises(ValueError):
        spread([[0.8, 0.9], [0.7]])
    with pytest.raises(ValueError, match="one value per subset and trial"):
        spread([])


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=6))
def test_pooled_deviation_from_means_and_deviations(values: list[list[float]]) -> None:
    table = np.array(values)
    assert pooled_std(table.mean(axis=1), table.std(axis=1)) == pytest.approx(float(table.std()), abs=1e-9)


def test_auroc_of_counts_is_that_of_the_repeated_images() -> None:
    run = make_scores(1, 12, 9, 0.7)
    counts = np.random.default_rng(2).integers(0, 4, size=(40, 21))
    for row, value in zip(counts, weighted_auroc(run.labels, run.scores, counts), strict=True):
        assert value == pytest.approx(roc_auc_score(np.repeat(run.labels, row), np.repeat(run.scores, row)), abs=1e-12)


def test_auroc_without_a_class_is_no_number() -> None:
    values = weighted_auroc(np.array([0, 1, 1]), np.array([1.0, 2.0, 3.0]), np.array([[0, 1, 1], [1, 0, 0], [1, 1, 0]]))
    assert np.isnan(values[:2]).all() and values[2] == 1


def brute_interval(runs: list[Scores], resamples: int) -> tuple[float, float]:
    """Image by image with scikit-learn; an image of a pool is drawn equally often in all runs."""
    random = np.random.default_rng(99)
    names: dict[tuple[str, int], list[str]] = {}
    for run in runs:
        for path, label in zip(run.paths, run.labels.tolist(), strict=True):
            if path not in names.setdefault((run.pool, label), []):
                names[run.pool, label].append(path)
    subsets = sorted({run.subset for run in runs})
    values = []
    for _ in range(resamples):
        drawn = {
            (pool, path): times
            for (pool, _), paths in names.items()
            for path, times in zip(paths, random.multinomial(len(paths), [1 / len(paths)] * len(paths)), strict=True)
        }
        of_subset: dict[str, list[float]] = {subset: [] for subset in subsets}
        for run in runs:
            times = [drawn[run.pool, path] for path in run.paths]
            of_subset[run.subset].append(roc_auc_score(np.repeat(run.labels, times), np.repeat(run.scores, times)))
        values.append(np.mean([np.mean(of_subset[subset]) for subset in subsets]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize(
    "runs",
    [
        [make_scores(3, 40, 30, 1.0)],
        [make_scores(seed, 40, 30, 1.0) for seed in (4, 5, 6)],
        # two rows of different size in different pools
        [make_scores(7, 40, 30, 0.5, "a", "one"), make_scores(8, 25, 35, 1.5, "b", "two")],
    ],
    ids=["one seed", "three seeds", "mean of rows"],
)
def test_interval_is_that_of_scikit_learn(runs: list[Scores]) -> None:
    low, high = bootstrap_interval(runs, 2000)
    slow_low, slow_high = brute_interval(runs, 300)
    width = slow_high - slow_low
    assert low == pytest.approx(slow_low, abs=0.15 * width)
    assert high == pytest.approx(slow_high, abs=0.15 * width)


def test_interval_is_the_same_every_time_and_holds_the_value() -> None:
    runs = [make_scores(seed, 60, 50, 1.0) for seed in (1, 2, 3)]
    low, high = bootstrap_interval(runs)
    assert bootstrap_interval(runs) == (low, high)
    assert low < np.mean([roc_auc_score(run.labels, run.scores) for run in runs]) < high


def test_seeds_that_share_their_images_do_not_narrow_the_interval() -> None:
    run = make_scores(1, 60, 50, 1.0)
    one, three = bootstrap_interval([run]), bootstrap_interval([run] * 3)
    assert three == pytest.approx(one, abs=1e-12)
    # the same scores on other images each time are more evidence
    apart = bootstrap_interval([Scores(f"set{n}", "a", run.paths, run.labels, run.scores) for n in range(3)])
    assert (apart[1] - apart[0]) < 0.7 * (one[1] - one[0])


def test_more_images_narrow_the_interval() -> None:
    few, many = bootstrap_interval([make_scores(1, 30, 30, 1.0)]), bootstrap_interval([make_scores(1, 480, 480, 1.0)])
    # a quarter of the width with sixteen times the images
    assert (many[1] - many[0]) / (few[1] - few[0]) == pytest.approx(0.25, rel=0.3)


def test_chunks_of_resamples_cover_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_scores(1, 30, 30, 1.0)]
    whole = bootstrap_interval(runs, 400)
    monkeypatch.setattr("sctune.train.statistics._CELLS_AT_ONCE", 700)
    parts = bootstrap_interval(runs, 400)
    assert parts == pytest.approx(whole, abs=0.2 * (whole[1] - whole[0]))


def test_few_images_of_a_class_still_give_an_interval() -> None:
    # some resamples leave one run without an anomaly
    first = make_scores(1, 20, 3, 2.0)
    second = Scores("set", "a", first.paths[:-2], first.labels[:-2], first.scores[:-2])
    low, high = bootstrap_interval([first, second])
    assert 0 <= low <= high <= 1
