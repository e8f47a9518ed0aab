"""Rounding of float32 decides nothing; everything that is more than rounding does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from sctune.metrics.image_level import auroc, average_precision
from sctune.metrics.objective import AUROC
from sctune.metrics.resampling import weighted_auroc
from sctune.metrics.ties import TIE, with_ties
from sctune.report import OBJECTIVE, EpochReport, merge_reports

LABELS = np.array([0, 1, 0, 1, 1, 0])


@pytest.mark.parametrize("level", [3.7, -3.7, 1e-3, 1e6])
def test_scores_that_differ_by_rounding_are_equal(level: float) -> None:
    """A network that gives every image the same, from sums in another order."""
    step = float(np.spacing(np.float32(abs(level))))
    noisy = np.float32(level) + step * np.array([0, 4, -3, 3, 2, -2])
    assert auroc(LABELS, noisy) == 0.5 and average_precision(LABELS, noisy) == 0.5
    assert AUROC.standard_error(LABELS, noisy) == 0.0 and AUROC.difference(LABELS, noisy, np.zeros(6)) == (0.0, 0.0)
    assert weighted_auroc(LABELS, noisy, np.ones((1, 6), int))[0] == 0.5


def test_what_is_near_zero_is_measured_by_the_others() -> None:
    scores = np.array([0.5, 1e-9, 0.7, 2e-9, 0.6, 0.0])
    assert with_ties(scores).tolist() == [0.5, 0.0, 0.7, 0.0, 0.6, 0.0]
    # where all are small, small differences count
    small = scores * 0 + np.arange(6) * 1e-12
    assert with_ties(small).tolist() == small.tolist()


def test_a_score_far_off_makes_no_tie_of_the_others() -> None:
    scores = np.array([0.1, 0.1001, 0.2, 0.3, 0.4, 1e9])
    assert with_ties(scores).tolist() == scores.tolist()


def test_no_tie_is_wider_than_said() -> None:
    """Thousands of close neighbours are not all one."""
    scores = 1 + np.arange(20_000) * TIE / 4
    merged = with_ties(scores)
    assert (scores - merged).max() <= 1.01 * TIE * merged.max() and len(np.unique(merged)) >= 3_900


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=40))
def test_the_order_is_kept_whatever_the_order_of_the_images(values: list[float]) -> None:
    scores = np.array(values)
    merged = with_ties(scores)
    order = np.argsort(scores, kind="stable")
    assert (np.diff(merged[order]) >= 0).all() and (merged <= scores).all()
    shuffled = np.random.default_rng(len(values)).permutation(len(values))
    assert (with_ties(scores[shuffled]) == merged[shuffled]).all()


def test_scores_apart_give_scikit_learns_values() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        labels = np.r_[0, 1, random.integers(0, 2, 60)]
        scores = np.round(random.normal(size=62), 2)
        assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


def test_orders_of_the_same_worth_have_the_same_value() -> None:
    """Of one AUROC, reached by other steps of the curve; and of one mean, from other tasks."""
    labels = np.r_[np.zeros(7, int), np.ones(3, int)]
    random = np.random.default_rng(1)
    by_pairs: dict[int, set[float]] = {}
    for _ in range(300):
        scores = random.permutation(10).astype(float)
        pairs = sum(a > b for a in scores[7:] for b in scores[:7])
        by_pairs.setdefault(pairs, set()).add(auroc(labels, scores))
    assert len(by_pairs) > 10 and all(len(values) == 1 for values in by_pairs.values())

    def mean(*values: float) -> float:
        tasks = {str(n): EpochReport(1, 1, {OBJECTIVE: round(value, 12)}) for n, value in enumerate(values)}
        return merge_reports(tasks).value

    assert mean(1 / 3, 2 / 3, 2 / 7) == mean(2 / 3, 1 / 7, 10 / 21)
