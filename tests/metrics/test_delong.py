"""DeLong's variances by sorting, against the definition over all pairs of images, and against a bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from sctune.metrics.delong import Placements
from sctune.metrics.resampling import weighted_auroc

LABELS = np.array([0, 1, 1, 0, 0, 1, 0, 0, 1, 0])
FEW_LEVELS = arrays(np.float64, len(LABELS), elements=st.integers(-2, 2).map(lambda level: level / 2))


def by_pairs(labels: np.ndarray, *rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC [R] of scores, and their covariance [R, R]: DeLong's equations 4 to 7, pair by pair."""
    placed = []
    for scores in rows:
        pairs = [
            [1.0 if above > below else 0.5 if above == below else 0.0 for below in scores[labels == 0]]
            for above in scores[labels == 1]
        ]
        placed.append(np.array(pairs))
    areas = np.array([pairs.mean() for pairs in placed])
    ten = np.array([pairs.mean(axis=1) - pairs.mean() for pairs in placed])
    one = np.array([pairs.mean(axis=0) - pairs.mean() for pairs in placed])
    m, n = placed[0].shape
    return areas, ten @ ten.T / (m - 1) / m + one @ one.T / (n - 1) / n


@settings(max_examples=200, deadline=None)
@given(FEW_LEVELS, FEW_LEVELS)
def test_it_is_the_definition_with_ties(a: np.ndarray, b: np.ndarray) -> None:
    areas, covariance = by_pairs(LABELS, a, b)
    first, second = Placements.of(LABELS, a), Placements.of(LABELS, b)
    assert [first.auroc, second.auroc] == pytest.approx(areas, abs=1e-12)
    assert first.auroc == pytest.approx(roc_auc_score(LABELS, a), abs=1e-12)
    assert first.error**2 == pytest.approx(covariance[0, 0], abs=1e-12)
    difference, error = first.difference(second)
    assert difference == pytest.approx(areas[0] - areas[1], abs=1e-12)
    wanted = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert error**2 == pytest.approx(wanted, abs=1e-12)
    assert first.difference(first) == (0.0, 0.0)


def test_a_bootstrap_within_the_classes_says_the_same() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], (170, 130))
    scores = np.round(random.normal(size=300) + labels, 1)
    counts = np.concatenate(
        [random.multinomial(170, np.full(170, 1 / 170), 3000), random.multinomial(130, np.full(130, 1 / 130), 3000)],
        axis=1,
    )
    assert Placements.of(labels, scores).error == pytest.approx(weighted_auroc(labels, scores, counts).std(), rel=0.06)


def test_one_image_of_a_class_and_a_perfect_order() -> None:
    one = Placements.of([0, 0, 0, 1], [0.1, 0.5, 0.9, 0.7])
    # the normal images alone: 2 of 3 below
    assert one.auroc == pytest.approx(2 / 3) and one.error == pytest.approx(np.sqrt(np.var([1, 1, 0], ddof=1) / 3))
    perfect = Placements.of(LABELS, LABELS)
    assert (perfect.auroc, perfect.error) == (1.0, 0.0)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], [[0, 1]]])
def test_what_is_no_pair_of_classes_is_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="both classes"):
        Placements.of(labels, [0.1, 0.2])
    with pytest.raises(ValueError, match="finite"):
        Placements.of([0, 1], [0.1, np.inf])
