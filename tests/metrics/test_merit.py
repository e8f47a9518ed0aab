"""The one order of merit, for figures of both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sctune.metrics.merit import full_runs, in_order
from sctune.metrics.objective import AUROC, FPR95


@dataclass(frozen=True)
class Trial:
    number: int
    state: str
    value: float | None
    values: Mapping[int, float] = field(default_factory=dict)


TRIALS = [
    Trial(0, "FAIL", None, {1: 0.9}),
    Trial(1, "PRUNED", 0.2, {1: 0.2}),
    Trial(2, "COMPLETE", 0.5, {1: 0.1, 2: 0.5}),
    Trial(3, "COMPLETE", 0.3, {1: 0.1, 2: 0.3}),
    Trial(4, "RUNNING", None, {1: 0.99}),
    Trial(5, "COMPLETE", 0.5, {1: 0.1, 2: 0.5}),
    Trial(6, "PRUNED", 0.8, {1: 0.8}),
    Trial(7, "PRUNED", 0.6, {1: 0.2, 2: 0.6}),
    Trial(8, "PRUNED", None, {1: 0.1}),
]


def test_full_runs_come_first_the_better_ones_before_and_of_equals_the_earlier() -> None:
    assert [trial.number for trial in in_order(TRIALS, AUROC)] == [2, 5, 3, 7, 6, 1, 8, 4, 0]
    assert [trial.number for trial in in_order(TRIALS, FPR95)] == [3, 2, 5, 7, 1, 6, 8, 4, 0]


def test_the_best_are_full_runs() -> None:
    assert [trial.number for trial in full_runs(reversed(TRIALS), AUROC)] == [2, 5, 3]
    assert [trial.number for trial in full_runs(TRIALS, FPR95)] == [3, 2, 5]
    assert full_runs(TRIALS[:2], AUROC) == []
