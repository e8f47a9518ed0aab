"""t-SNE and silhouettes: deterministic, and right on groups whose distance is known."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from sctune.errors import ConfigError, DataError, SctuneError
from sctune.train.embedding import fitting_perplexity, silhouette, tsne


def clusters(distance: float, each: int = 25, channels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, each, channels)).astype(np.float32)
    return first, second + np.float32(distance)


def test_the_same_features_give_the_same_points() -> None:
    features = np.concatenate(clusters(3))
    before = features.copy()
    points = tsne(features)
    assert points.shape == (50, 2)
    np.testing.assert_array_equal(points, tsne(features))
    np.testing.assert_array_equal(features, before)


def test_groups_that_are_apart_stay_apart_and_mixed_ones_stay_mixed() -> None:
    apart, mixed = clusters(6), clusters(0)
    assert silhouette(*apart) > 0.7
    assert abs(silhouette(*mixed)) < 0.05
    for groups, low, high in ((apart, 0.6, 1.0), (mixed, -0.2, 0.15)):
        points = tsne(np.concatenate(groups))
        assert low < silhouette(points[:25], points[25:]) <= high


@pytest.mark.parametrize(("count", "perplexity"), [(3, 1.0), (4, 1.0), (10, 3.0), (91, 30.0), (1000, 30.0)])
def test_few_points_lower_the_perplexity(count: int, perplexity: float) -> None:
    assert fitting_perplexity(count, 30) == pytest.approx(perplexity)


@pytest.mark.parametrize("count", [3, 4, 5, 29])
def test_fewer_points_than_the_perplexity_give_no_warning(count: int) -> None:
    features = np.random.default_rng(count).normal(size=(count, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = tsne(features, perplexity=30)
    assert np.isfinite(points).all()
    assert len(np.unique(points, axis=0)) == count


@pytest.mark.parametrize(
    ("features", "perplexity", "kind", "words"),
    [
        (np.eye(2), 30, DataError, "2 images: 3 are needed"),
        (np.zeros((0, 4)), 30, DataError, "0 images: 3 are needed"),
        (np.ones((8, 4)), 30, DataError, "all 8 images are equal"),
        (np.array([[0.0, 1], [np.nan, 1], [2, 2]]), 30, DataError, "no finite numbers"),
        (np.eye(5), 0.5, ConfigError, "perplexity 0.5: it must be 1 at least"),
        (np.eye(5), float("nan"), ConfigError, "perplexity nan"),
    ],
)
def test_what_cannot_be_embedded_is_said(
    features: np.ndarray, perplexity: float, kind: type[SctuneError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        tsne(features, perplexity)


def test_the_silhouette_by_hand() -> None:
    first, second = np.array([[0.0], [1.0]]), np.array([[10.0], [11.0]])
    # points 0 and 11: own distance 1, other 10.5; points 1 and 10: own 1, other 9.5
    assert silhouette(first, second) == pytest.approx((9.5 / 10.5 + 8.5 / 9.5) / 2)
    # one group around the other: 0 and 11 are nearer to the middle than to each other, the middle ones are not
    outer, inner = np.array([[0.0], [11.0]]), np.array([[5.0], [6.0]])
    assert silhouette(outer, inner) == pytest.approx(((5.5 - 11) / 11 + (5.5 - 1) / 5.5) / 2)


@pytest.mark.parametrize(("first", "second"), [(0, 5), (5, 0), (1, 1)])
def test_no_silhouette_without_two_groups(first: int, second: int) -> None:
    assert silhouette(np.zeros((first, 3)), np.ones((second, 3))) is None
