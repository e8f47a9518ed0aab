"""Standard errors of AUROC: hand calculations and the known formula."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sctune.metrics.objective import AUROC
from sctune.search.study.paired import compare, value_se


def make_scores(seed: int, shift: float, n: int = 100) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.repeat([0, 1], n)
    return labels, generator.normal(size=2 * n) + shift * labels


def test_difference_is_that_of_the_reference_auroc_with_ties() -> None:
    labels, a = make_scores(0, 1.0)
    _, b = make_scores(1, 0.5)
    a, b = np.round(a, 1), np.round(b, 1)
    difference, _ = AUROC.difference(labels, a, b)
    assert difference == pytest.approx(roc_auc_score(labels, a) - roc_auc_score(labels, b), abs=1e-12)


def test_standard_error_is_near_hanley_and_mcneil() -> None:
    labels, scores = make_scores(2, 1.0)
    area = roc_auc_score(labels, scores)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    expected = np.sqrt((area * (1 - area) + 99 * (q1 - area**2) + 99 * (q2 - area**2)) / 100**2)
    assert AUROC.standard_error(labels, scores) == pytest.approx(expected, rel=0.15)


def test_pairing_cancels_what_is_hard_for_both() -> None:
    labels, a = make_scores(3, 1.0)
    noise = np.random.default_rng(4).normal(size=a.size) * 0.01
    assert AUROC.difference(labels, a, a) == (0.0, 0.0)
    _, paired = AUROC.difference(labels, a, a + noise)
    assert paired < AUROC.standard_error(labels, a) / 5


def test_a_clear_gap_needs_two_errors() -> None:
    labels, good = make_scores(6, 2.0)
    _, bad = make_scores(7, 0.2)
    _, alike = make_scores(8, 2.0)
    one, two = {"a": labels.tolist()}, {"a": labels.tolist(), "b": labels.tolist()}
    scores = {0: {"a": good, "b": good}, 1: {"a": bad, "b": bad}, 2: {"a": alike, "b": alike}}
    assert compare(0, 1, scores, one, AUROC).clear
    assert not compare(0, 2, scores, two, AUROC).clear
    assert not compare(0, 0, scores, one, AUROC).clear


def test_makers_and_real_anomalies_weigh_equally() -> None:
    """One real anomaly class and two makers: half the objective is real, a quarter each maker."""
    labels = {"t": [0, 0, 1]}
    best, worst = {"t": [0.0, 0.1, 1.0], "t:x": [1.0, 1.0], "t:y": [1.0, 1.0]}, {"t": [0.0, 0.1, 1.0]}
    flipped = {**worst, "t:x": [-1.0, -1.0], "t:y": [1.0, 1.0]}
    assert compare(0, 1, {0: best, 1: flipped}, labels, AUROC).difference == pytest.approx(0.25)
    assert compare(0, 1, {0: best, 1: {**best, "t": [0.0, 0.1, -1.0]}}, labels, AUROC).difference == pytest.approx(0.5)
    assert value_se(best, labels, AUROC) == 0.0


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], [[0, 1]]])
def test_one_class_is_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="both classes"):
        AUROC.standard_error(labels, [0.1, 0.2])
    with pytest.raises(ValueError, match="finite"):
        AUROC.standard_error([0, 1], [0.1, float("nan")])
