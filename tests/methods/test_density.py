"""The Gaussian beside scikit-learn's, and by hand where there are several components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from threadpoolctl import threadpool_info, threadpool_limits

from sctune.errors import DataError
from sctune.methods import density as density_module
from sctune.methods.density import POOLED_SHARE, Gaussian, distances, fit_gaussian


def drawn(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimension)) @ rng.normal(size=(dimension, dimension)) + 3


def lengths(density: Gaussian, rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = distances(density(torch.from_numpy(rows))).numpy()
    return found


@pytest.mark.parametrize(("count", "dimension"), [(300, 20), (40, 40), (15, 40)])
def test_distances_are_those_of_scikit_learn(count: int, dimension: int) -> None:
    rows, others = drawn(count, dimension), drawn(9, dimension, seed=1)
    density, shrinkage = fit_gaussian(rows)
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    model = LedoitWolf().fit((rows - mean) / scale)
    assert shrinkage == pytest.approx(model.shrinkage_)
    for some in (rows, others):
        expected = np.sqrt(model.mahalanobis((some - mean) / scale))
        np.testing.assert_allclose(lengths(density, some), expected, rtol=1e-9)


def test_whitened_rows_have_no_covariance_left() -> None:
    rows = drawn(4000, 6)
    white = fit_gaussian(rows)[0](torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-9)
    # but for what is shrunk, which 4000 rows make little of
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(6), atol=0.02)


def test_units_and_shifts_of_the_features_do_not_matter() -> None:
    rows, other = drawn(60, 8), drawn(5, 8, seed=1)
    factors, shift = np.geomspace(1e-3, 1e3, 8), np.arange(8)
    plain = lengths(fit_gaussian(rows)[0], other)
    np.testing.assert_allclose(lengths(fit_gaussian(rows * factors + shift)[0], other * factors + shift), plain)


@pytest.mark.parametrize("dimension", [5, 90])
def test_two_kinds_of_normal_by_hand(dimension: int) -> None:
    kinds = [drawn(40, dimension, seed=2), drawn(60, dimension, seed=3) + 500]
    rows = np.concatenate(kinds)
    density, _ = fit_gaussian(rows, components=2)
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    standard = [(kind - mean) / scale for kind in kinds]
    pooled = LedoitWolf(assume_centered=True).fit(np.concatenate([kind - kind.mean(axis=0) for kind in standard]))
    other = np.concatenate([drawn(4, dimension, seed=2) + 1, drawn(4, dimension, seed=3) + 490])
    expected = []
    for kind in standard:
        own = LedoitWolf().fit(kind).covariance_
        precision = np.linalg.inv((1 - POOLED_SHARE) * own + POOLED_SHARE * pooled.covariance_)
        away = (other - mean) / scale - kind.mean(axis=0)
        expected.append(np.sqrt(np.einsum("nd,de,ne->n", away, precision, away)))
    np.testing.assert_allclose(lengths(density, other), np.min(expected, axis=0), rtol=1e-7)
    # one Gaussian of both has room between them
    between = (kinds[0].mean(axis=0) + kinds[1].mean(axis=0))[None] / 2
    assert lengths(density, between) > 5 * lengths(fit_gaussian(rows)[0], between)


def test_a_feature_that_never_changes_does_no_harm() -> None:
    rows = np.column_stack([drawn(50, 4), np.full(50, 7.0)])
    density, _ = fit_gaussian(rows)
    assert np.isfinite(lengths(density, rows)).all()
    moved = rows[:1] + np.array([0, 0, 0, 0, 1.0])
    assert lengths(density, moved) > lengths(density, rows[:1])


def test_a_feature_that_is_rounded_otherwise_tells_nothing() -> None:
    """As single precision leaves one that is the same for all: other batches, other last bits."""
    rounding = np.random.default_rng(3).uniform(-1, 1, 53) * np.finfo(np.float32).eps
    kept = drawn(53, 4)
    rows = np.column_stack([kept, 7 * (1 + rounding)])
    density, _ = fit_gaussian(rows[:50])
    otherwise = np.column_stack([kept, 7 * (1 + rounding[::-1])])
    np.testing.assert_allclose(lengths(density, otherwise), lengths(density, rows), rtol=1e-4)
    with pytest.raises(DataError, match="are equal"):
        fit_gaussian(rows[:, 4:])
    # as differences from a mean, of features of any size
    for size in (7.0, 7e9):
        away = np.column_stack([kept, size * rounding])
        apart, _ = fit_gaussian(away[:50], magnitude=np.array([3, 3, 3, 3, size]))
        other = np.column_stack([kept, size * rounding[::-1]])
        np.testing.assert_allclose(lengths(apart, other), lengths(apart, away), rtol=1e-4)


def test_equal_rows_make_no_number_that_is_none() -> None:
    rows = np.repeat(drawn(6, 4), 5, axis=0)
    # more components than distinct rows: all lie on a centre
    density, _ = fit_gaussian(rows, components=8)
    assert np.isfinite(lengths(density, drawn(3, 4, seed=1))).all()


def test_kinds_are_found_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of several threads are no two times the same to the last bit."""
    seen = []

    class Watched(density_module.KMeans):
        def fit(self, *given: object) -> Watched:
            seen.append({pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"})
            found: Watched = super().fit(*given)
            return found

    monkeypatch.setattr(density_module, "KMeans", Watched)
    with threadpool_limits(2, "openmp"):
        fit_gaussian(drawn(60, 5), components=3)
        after = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"}
    assert seen == [{1}] and after == {2}


@pytest.mark.parametrize(
    ("rows", "components", "message"),
    [
        (np.ones((20, 3)), 1, "the features of all 20 normal images are equal"),
        (drawn(3, 2), 3, "3 normal images are too few for 3 components"),
    ],
)
def test_what_cannot_be_fitted_is_said_in_one_line(rows: np.ndarray, components: int, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        fit_gaussian(rows, components)
    assert "\n" not in str(caught.value)
