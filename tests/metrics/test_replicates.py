"""The mixed model of trials and replicates: by hand, against its equations written out, and on drawn values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from sctune.metrics.replicates import Standing, standing


def dense(found: Standing, values: dict[int, list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Means and covariance of level + configuration by Henderson's equations of the whole model, with its variances."""
    numbers = sorted(values)
    rows = [(place, seed, y) for place, number in enumerate(numbers) for seed, y in enumerate(values[number])]
    n_trials, n_seeds = len(numbers), max(map(len, values.values()))
    size = 1 + n_trials + n_seeds
    design = np.zeros((len(rows), size))
    for row, (place, seed, _) in enumerate(rows):
        design[row, [0, 1 + place, 1 + n_trials + seed]] = 1
    error = found.error**2
    prior = np.diag([0.0] + [1 / found.spread**2] * n_trials + [1 / found.moved**2] * n_seeds)
    covariance = np.linalg.inv(design.T @ design / error + prior)
    solution = covariance @ (design.T @ np.array([y for *_, y in rows]) / error)
    to_means = np.hstack([np.ones((n_trials, 1)), np.eye(n_trials), np.zeros((n_trials, n_seeds))])
    return to_means @ solution, to_means @ covariance @ to_means.T


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 5))
def test_it_solves_the_mixed_models_equations(seed: int, trials: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    values = {int(n): list(rng.normal(0.8, 0.05, rng.integers(1, most + 1))) for n in rng.permutation(50)[:trials]}
    found = standing(values)
    means, covariance = dense(found, values)
    assert found.numbers == tuple(sorted(values))
    assert found.means == pytest.approx(means, abs=1e-9)
    spread = np.diag(covariance)
    for place in range(trials):
        errors = np.sqrt(np.maximum(spread + spread[place] - 2 * covariance[place], 0))
        assert found.gap_errors(place) == pytest.approx(errors, abs=1e-7)


def test_means_are_shrunk_the_more_the_fewer_replicates() -> None:
    values = {0: 0.9, 1: 0.7, 2: 0.72, 3: 0.71}
    lucky, steady = (standing({number: [y] * times for number, y in values.items()}) for times in (1, 3))
    level = sum(values.values()) / 4
    # of single values nobody knows what part is error: the prior's half, so that each goes half of the way
    assert lucky.means == pytest.approx([level + (y - level) / 2 for y in values.values()])
    assert abs(steady.means[0] - 0.9) < 0.01 < 0.07 < abs(lucky.means[0] - 0.9)
    assert steady.gap_errors(0)[1] < lucky.gap_errors(0)[1]


def test_what_a_seed_does_to_all_is_no_error() -> None:
    """Three seeds move all trials together by far: the order is sure, and the error small."""
    moved = {number: [y + seed for seed in (0.0, 0.3, -0.2)] for number, y in enumerate((0.5, 0.52, 0.51, 0.6))}
    found = standing(moved)
    assert found.error < 0.03 and found.leader == 3
    # a trial that met the unlucky seed alone beside others is not judged by it
    unlucky = standing(moved | {4: [0.58, 0.88]})
    assert unlucky.means[4] > unlucky.means[0]


def written_out(values: dict[int, list[float]], logs: np.ndarray) -> float:
    """-2 log of the restricted likelihood with the whole covariance of all values, and the prior."""
    rows = [(place, seed, y) for place, number in enumerate(sorted(values)) for seed, y in enumerate(values[number])]
    trial, replicate, y = (np.array(column) for column in zip(*rows, strict=True))
    error, spread, moved = np.exp(logs)
    same = trial[:, None] == trial, replicate[:, None] == replicate
    covariance = error * np.eye(len(y)) + spread * same[0] + moved * same[1]
    ones, inverse = np.ones(len(y)), np.linalg.inv(covariance)
    information = ones @ inverse @ ones
    rest = y - ones * (ones @ inverse @ y) / information
    columns = [
        [row[seed] for row in values.values() if len(row) > seed] for seed in range(max(map(len, values.values())))
    ]
    degrees = len(y) - len(columns)
    pooled = sum(np.var(column) * len(column) for column in columns) / degrees
    prior = ((logs - np.log(0.5 * pooled)) ** 2).sum() / (0.7**2 + 2 / degrees)
    return float(np.linalg.slogdet(covariance)[1] + np.log(information) + rest @ inverse @ rest + prior)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_variances_are_the_likeliest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {number: list(rng.normal(0.8 + number / 100, 0.02, rng.integers(1, 5))) for number in range(8)}
    found = standing(values)
    ours = 2 * np.log([found.error, found.spread, found.moved])
    best = optimize.minimize(
        lambda logs: written_out(values, logs), ours, method="Nelder-Mead", options={"xatol": 1e-5}
    )
    assert ours == pytest.approx(best.x, abs=0.02)


def test_the_variances_of_many_drawn_trials() -> None:
    errors, spreads = [], []
    rng = np.random.default_rng(7)
    for _ in range(20):
        seeds = rng.normal(0, 0.05, 4)
        true = rng.normal(0.8, 0.03, 24)
        counts = [4, 4, 3, 3, 3, *[2] * 6, *[1] * 13]
        found = standing({n: list(true[n] + seeds[:k] + rng.normal(0, 0.02, k)) for n, k in enumerate(counts)})
        errors.append(found.error)
        spreads.append(found.spread)
    assert np.mean(errors) == pytest.approx(0.02, rel=0.15) and np.mean(spreads) == pytest.approx(0.03, rel=0.15)


def test_chances_of_equal_trials_are_equal_and_of_a_far_one_all() -> None:
    equal, near = standing({0: [0.8, 0.8], 1: [0.8, 0.8]}).chances(1.0)
    assert equal.sum() == pytest.approx(1) and equal == pytest.approx([0.5, 0.5], abs=0.05)
    assert near == pytest.approx([1, 1])
    best, near = standing({0: [0.9] * 3, 1: [0.5, 0.51, 0.49], 2: [0.51, 0.5, 0.5]}).chances(0.005)
    assert best[0] == near[0] == 1.0


def test_chances_are_those_of_the_means_own_distribution() -> None:
    values = {0: [0.80, 0.82], 1: [0.79], 2: [0.81, 0.77, 0.80]}
    found = standing(values)
    means, covariance = dense(found, values)
    drawn = np.random.default_rng(5).multivariate_normal(means, covariance, 40_000)
    best = np.bincount(drawn.argmax(axis=1), minlength=3) / len(drawn)
    near = (drawn >= drawn.max(axis=1, keepdims=True) - 0.005).mean(axis=0)
    ours = found.chances(0.005)
    # 4,000 draws: three errors of a share
    assert ours[0] == pytest.approx(best, abs=0.025) and ours[1] == pytest.approx(near, abs=0.025)


def test_what_it_costs_to_settle() -> None:
    found = standing({0: [0.80, 0.82], 1: [0.79, 0.80], 2: [0.2, 0.2]})
    gap = found.means[0] - found.means[1]
    needed = int(np.ceil(2 * (2 * found.error / gap) ** 2))
    assert found.cost_to_settle(0, 0.005, 2.0) == 2 * (needed - 2)
    # nearer to each other than what is asked about costs no more than that distance
    equal = standing({0: [0.8, 0.82], 1: [0.82, 0.8], 2: [0.2, 0.21]})
    most = int(np.ceil(2 * (2 * equal.error / 0.05) ** 2))
    assert equal.cost_to_settle(0, 0.05, 2.0) == 2 * max(most - 2, 0)
    assert standing({0: [0.9] * 6, 1: [0.3] * 6, 2: [0.5] * 6}).cost_to_settle(0, 0.005, 2.0) == 0


def test_a_seed_that_tells_no_trial_apart_makes_nothing_certain() -> None:
    """With the first one all are equal, as on an easy set; the others vary."""
    rng = np.random.default_rng(1)
    found = standing({number: [1.0, *rng.normal(0.9, 0.05, 3)] for number in range(10)})
    assert found.error > 0.02 and found.chances(0.005)[0].max() < 0.7


def test_one_trial_and_equal_values_are_no_trouble() -> None:
    alone = standing({7: [0.8]})
    assert alone.leader == 0 and alone.means == pytest.approx([0.8]) and alone.gap_errors(0) == [0]
    assert alone.chances(0.01)[0] == [1.0] and alone.cost_to_settle(0, 0.005, 2.0) == 0
    same = standing({0: [0.5], 1: [0.5], 2: [0.5, 0.5]})
    assert same.leader == 0 and same.means == pytest.approx([0.5] * 3) and np.isfinite(same.gap_errors(0)).all()
    with pytest.raises(ValueError, match="no trial has a replicate"):
        standing({})
