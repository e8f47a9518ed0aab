"""The selection images under each objective: the mean over real anomalies and makers, and what stands beside it."""

from __future__ import annotations

import numpy as np
import pytest

from sctune.metrics.objective import AP, AUROC, FPR95, Objective
from sctune.train.selection import SelectionSet

LABELS = np.array([0, 0, 0, 0, 1, 1])
SCORES = [0.1, 0.2, 0.3, 0.9, 0.25, 0.8]
MAKERS = {"warp": [0.5, 0.95], "blur": [0.05, 0.4]}


def images(scores: list[float]) -> np.ndarray:
    """One image of one pixel for each score."""
    return np.array(scores).reshape(-1, 1, 1, 1)


def selection(objective: Objective, proxy: bool = True, real: bool = True) -> SelectionSet:
    kept = slice(None) if real else slice(4)
    made = {name: images(scores) for name, scores in MAKERS.items()} if proxy else {}
    paths = tuple("abcdef")[kept]
    return SelectionSet(paths, LABELS[kept], images(SCORES)[kept], made, objective)


def scorer(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, 0, 0, 0]


@pytest.mark.parametrize("objective", [AUROC, AP, FPR95], ids=lambda one: one.name)
def test_real_anomalies_and_makers_weigh_equally(objective: Objective) -> None:
    metrics, raw = selection(objective).evaluate(scorer)
    against = {name: objective.value([0] * 4 + [1] * 2, [*SCORES[:4], *scores]) for name, scores in MAKERS.items()}
    real = objective.value(LABELS, SCORES)
    wanted = (real + np.mean(list(against.values()))) / 2
    assert metrics[objective.metric] == pytest.approx(wanted, abs=1e-12)
    assert metrics[f"{objective.metric}_real"] == real
    assert {name: metrics[f"{objective.metric}_{name}"] for name in MAKERS} == against
    assert metrics["selection_auroc_real"] == AUROC.value(LABELS, SCORES), "AUROC is always told too"
    assert raw == {"": SCORES, **MAKERS}


@pytest.mark.parametrize("objective", [AP, FPR95], ids=lambda one: one.name)
def test_either_part_alone_is_the_objective(objective: Objective) -> None:
    metrics, _ = selection(objective, proxy=False).evaluate(scorer)
    assert metrics[objective.metric] == pytest.approx(objective.value(LABELS, SCORES), abs=1e-12)
    metrics, _ = selection(objective, real=False).evaluate(scorer)
    assert metrics[objective.metric] == pytest.approx(np.mean([metrics[f"{objective.metric}_{n}"] for n in MAKERS]))
    assert f"{objective.metric}_real" not in metrics


def test_the_default_tells_what_it_always_told() -> None:
    metrics, _ = selection(AUROC).evaluate(scorer)
    assert list(metrics) == [
        "selection_auroc_real",
        "selection_ap",
        "selection_auroc_warp",
        "selection_auroc_blur",
        "selection_auroc",
    ]
