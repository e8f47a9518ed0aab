"""Objectives: values by hand and by scikit-learn, standard errors by plain resampling, and one from another package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, roc_curve

from sctune.errors import ConfigError, DataError, NonFiniteError
from sctune.metrics import objective as objectives
from sctune.metrics.objective import AP, AUROC, FPR95, Objective, find_objective, objective_names
from tests.plugins import documented, install_objective

LABELS = np.array([0, 1, 1, 0, 0, 1, 0, 0, 1, 0])
FEW_LEVELS = arrays(np.float64, len(LABELS), elements=st.integers(-2, 2).map(lambda level: level / 2))
COUNTS = arrays(np.int64, (3, len(LABELS)), elements=st.integers(1, 3))
ALL = (AUROC, AP, FPR95)
MISSES = documented("An objective")


def drawn(seed: int, shift: float, normal: int = 120, anomalous: int = 60) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat([0, 1], (normal, anomalous))
    return labels, np.round(random.normal(size=labels.size) + shift * labels, 1)


def test_false_alarms_by_hand() -> None:
    # 19 of 20 anomalies are the 95 % that must be found: the lowest one may be missed
    labels = np.array([0, 0, 0, 0, *[1] * 20])
    scores = np.array([0.1, 0.5, 0.7, 0.9, 0.0, 0.6, *np.linspace(0.8, 1.0, 18)])
    assert FPR95.value(labels, scores) == 0.5
    # a normal image that scores as the last anomaly that is needed is a false alarm
    assert FPR95.value([0, 0, 1], [0.1, 0.4, 0.4]) == 0.5
    assert FPR95.value([0, 0, 1], [0.1, 0.4, 0.4 + 1e-9]) == 0.5
    assert (FPR95.value([0, 1], [0.1, 0.4]), FPR95.value([0, 1], [0.4, 0.1])) == (0.0, 1.0)


@settings(max_examples=200, deadline=None)
@given(FEW_LEVELS)
def test_values_are_those_of_scikit_learn(scores: np.ndarray) -> None:
    false, true, _ = roc_curve(LABELS, scores, drop_intermediate=False)
    assert FPR95.value(LABELS, scores) == pytest.approx(false[np.argmax(true >= 0.95)], abs=1e-12)
    assert AP.value(LABELS, scores) == pytest.approx(average_precision_score(LABELS, scores), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(FEW_LEVELS, COUNTS)
def test_a_resample_is_its_images_that_often(scores: np.ndarray, counts: np.ndarray) -> None:
    for one in ALL:
        values = one.resampled(LABELS, scores, counts)
        wanted = [one.value(np.repeat(LABELS, row), np.repeat(scores, row)) for row in counts]
        assert values == pytest.approx(wanted, abs=1e-12), one.name


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_standard_errors_are_those_of_plain_resampling(one: Objective) -> None:
    (labels, a), (_, b) = drawn(0, 1.5), drawn(1, 1.0)
    random = np.random.default_rng(7)
    classes = [np.flatnonzero(labels == label) for label in (0, 1)]
    rows = [np.concatenate([random.choice(images, images.size) for images in classes]) for _ in range(800)]
    values = np.array([[one.value(labels[row], scores[row]) for scores in (a, b)] for row in rows])
    assert one.standard_error(labels, a) == pytest.approx(values[:, 0].std(), rel=0.12)
    difference, error = one.difference(labels, a, b)
    assert difference == pytest.approx(one.value(labels, a) - one.value(labels, b), abs=1e-12)
    assert error == pytest.approx((values[:, 0] - values[:, 1]).std(), rel=0.12)
    assert one.standard_error(labels, a) == one.standard_error(labels, a), "the same at every call"


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_pairing_cancels_what_is_hard_for_both(one: Objective) -> None:
    labels, scores = drawn(3, 1.0)
    assert one.difference(labels, scores, scores) == (0.0, 0.0)
    _, paired = one.difference(labels, scores, scores + np.random.default_rng(4).normal(size=scores.size) * 0.01)
    assert paired < one.standard_error(labels, scores)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_what_has_no_figure_is_refused(one: Objective) -> None:
    with pytest.raises(DataError, match="normal and anomalous"):
        one.value([0, 0], [0.1, 0.2])
    with pytest.raises(NonFiniteError):
        one.value([0, 1], [0.1, float("inf")])
    with pytest.raises(ValueError, match="both classes"):
        one.standard_error([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="finite"):
        one.difference([0, 1], [0.1, 0.2], [0.1, float("nan")])


def test_a_direction_is_turned_by_merit_alone() -> None:
    assert (AUROC.merit(0.25), FPR95.merit(0.25)) == (0.25, -0.25)
    values = [0.5, 0.25, 0.75]
    assert [(one.best(values), one.worst(values)) for one in (AUROC, FPR95)] == [(0.75, 0.25), (0.25, 0.75)]
    assert (AUROC.flattered, FPR95.flattered) == ("too high", "too low")
    # documents of before named no objective
    assert (AUROC.stated, FPR95.stated) == ({}, {"objective": "fpr95"})
    assert [one.metric for one in ALL] == ["selection_auroc", "selection_ap", "selection_fpr95"]


def test_an_unknown_objective_is_told_with_the_nearest_name() -> None:
    assert objective_names()[:3] == ("auroc", "ap", "fpr95")
    with pytest.raises(ConfigError, match="unknown objective 'fpr59'; did you mean 'fpr95'"):
        find_objective("fpr59")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path, for one package."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("outside", None)
    objectives._loaded.cache_clear()


def test_another_package_brings_an_objective(outside: Path) -> None:
    install_objective(outside, "misses", "Misses", MISSES)
    assert objective_names()[-1] == "misses"
    found = find_objective("misses")
    labels, scores = drawn(5, 2.0, 30, 20)
    # it gives its value alone: the errors are resampled image by image
    highest = scores[labels == 0].max()
    assert found.value(labels, scores) == (scores[labels == 1] <= highest).mean()
    assert 0 < found.standard_error(labels, scores) < 0.5
    assert found.merit(0.2) > found.merit(0.3)


@pytest.mark.parametrize(
    ("name", "target", "source", "message"),
    [
        ("misses", "Gone", MISSES, r"'misses' of package outside cannot be loaded \(AttributeError"),
        ("other", "Misses", MISSES, "calls itself 'misses'; its name must be that of its entry point"),
        ("misses", "Plain", "class Plain: ...", "is a Plain; it must be a sub-class of sctune's Objective"),
        ("misses", "Misses", MISSES.replace('"minimize"', '"down"'), "direction 'down'; write maximize or minimize"),
        ("misses", "Misses", MISSES.replace("def value", "def figure"), "cannot be made: TypeError"),
    ],
)
def test_one_that_cannot_be_used_says_why(outside: Path, name: str, target: str, source: str, message: str) -> None:
    install_objective(outside, name, target, source)
    with pytest.raises(ConfigError, match=message):
        find_objective(name)
