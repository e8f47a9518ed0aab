"""Standard deviations by hand, and bootstrap intervals against scikit-learn on the same resamples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from sctune.metrics.resampling import weighted_auroc
from sctune.metrics.statistics import (
    Scores,
    bootstrap_interval,
    pooled_std,
    seeded_difference,
    seeded_interval,
    spread,
)


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
    monkeypatch.setattr("sctune.metrics.statistics._CELLS_AT_ONCE", 700)
    parts = bootstrap_interval(runs, 400)
    assert parts == pytest.approx(whole, abs=0.2 * (whole[1] - whole[0]))


def test_few_images_of_a_class_still_give_an_interval() -> None:
    # some resamples leave one run without an anomaly
    first = make_scores(1, 20, 3, 2.0)
    second = Scores("set", "a", first.paths[:-2], first.labels[:-2], first.scores[:-2])
    low, high = bootstrap_interval([first, second])
    assert 0 <= low <= high <= 1


def of_seeds(shifts: dict[int, float], start: int = 0) -> list[Scores]:
    """A run for each seed, on the same 30 images; the seed's own draw of the scores."""
    runs = []
    for seed, shift in shifts.items():
        run = make_scores(start + seed, 18, 12, shift)
        runs.append(Scores(run.pool, run.subset, run.paths, run.labels, run.scores, seed))
    return runs


def test_one_seed_has_the_interval_of_its_images() -> None:
    (run,) = of_seeds({1: 0.8})
    found = seeded_interval([run])
    assert (found.low, found.high) == bootstrap_interval([run])
    assert found.value == pytest.approx(roc_auc_score(run.labels, run.scores))
    assert (found.std, found.p) == (None, None)


def test_seeds_are_the_outer_level() -> None:
    """Seeds that differ widen the interval beyond that of the images; seeds that agree do not."""
    apart, alike = of_seeds({1: 0.0, 2: 3.0, 3: 0.2, 4: 2.5}), of_seeds({1: 1.0})
    wide = seeded_interval(apart)
    images_only = bootstrap_interval(apart)
    assert wide.high - wide.low > 1.5 * (images_only[1] - images_only[0])
    same = [Scores(r.pool, r.subset, r.paths, r.labels, r.scores, seed) for seed, r in enumerate(alike * 4)]
    narrow, single = seeded_interval(same), bootstrap_interval(alike)
    assert (narrow.low, narrow.high) == pytest.approx(single)
    values = [roc_auc_score(run.labels, run.scores) for run in apart]
    assert wide.value == pytest.approx(np.mean(values)) and wide.std == pytest.approx(np.std(values))
    assert list(wide.seeds) == [1, 2, 3, 4] and list(wide.seeds.values()) == pytest.approx(values)


def plain_auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    above = anomalous[:, None] - normal[None]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def test_nested_interval_is_that_of_a_plain_loop() -> None:
    """A second implementation with other random numbers: the same distribution."""
    runs = of_seeds({1: 0.3, 2: 1.2, 3: 0.8})
    random = np.random.default_rng(11)
    labels = runs[0].labels
    normal, anomalous = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    means = []
    for _ in range(3000):
        rows = np.r_[random.choice(normal, len(normal)), random.choice(anomalous, len(anomalous))]
        drawn = [runs[seed] for seed in random.integers(3, size=3)]
        means.append(np.mean([plain_auroc(run.scores[rows][:18], run.scores[rows][18:]) for run in drawn]))
    found = seeded_interval(runs, resamples=4000)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.02)


def test_a_difference_is_paired_and_turns_its_sign() -> None:
    better, worse = of_seeds({1: 2.0, 2: 1.8, 3: 2.2}), of_seeds({1: 0.2, 2: 0.1, 3: 0.4})
    there, back = seeded_difference(better, worse), seeded_difference(worse, better)
    assert there.value == pytest.approx(-back.value) and there.low == pytest.approx(-back.high)
    assert there.low > 0 and there.p == pytest.approx(2 / 2000)
    # noise that both share cancels: a constant added to all scores changes no order
    shifted = [Scores(r.pool, r.subset, r.paths, r.labels, r.scores + 5, r.seed) for r in better]
    none = seeded_difference(better, shifted)
    assert (none.value, none.low, none.high, none.p) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="same seeds"):
        seeded_difference(better, worse[::-1])


def test_folds_and_categories_count_once_each() -> None:
    """Two folds of one category together weigh as much as the other category's one model."""
    parts = [
        make_scores(seed, 10, 8, shift, subset) for seed, shift, subset in ((1, 0.5, "a"), (2, 2.0, "a"), (3, 1, "b"))
    ]
    first, second, other = (roc_auc_score(run.labels, run.scores) for run in parts)
    assert seeded_interval(parts).value == pytest.approx(((first + second) / 2 + other) / 2)
