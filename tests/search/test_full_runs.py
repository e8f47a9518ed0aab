"""Full runs are compared with the latest ones that they may know, and the scores of no others are held."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest

from sctune.metrics.objective import AUROC
from sctune.search.study.full_runs import AGAINST, FullRuns
from sctune.search.study.paired import paired

LABELS = {"t": [0, 0, 0, 0, 1, 1, 1, 1]}


class Held(list[float]):
    """A list that can be asked whether it is still there."""


def drawn(number: int) -> dict[str, Held]:
    return {"t": Held(np.random.default_rng(number).random(8).tolist())}


def ended_in_order(behind: int | None, trials: int, slots: int) -> list[int]:
    """Numbers as they end where trial n begins when all before n - behind have ended, and `slots` run at most."""
    rng, order = np.random.default_rng(3), list[int]()
    running: list[int] = []
    begun = 0
    while len(order) < trials:
        oldest = min(running, default=begun)
        if begun < trials and len(running) < slots and (behind is None or oldest >= begun - behind):
            running.append(begun)
            begun += 1
        else:
            order.append(running.pop(int(rng.integers(len(running)))))
    return order


@pytest.mark.parametrize("behind", [None, 0, 1, 3, 10])
def test_errors_are_those_against_all_scores(behind: int | None) -> None:
    runs, all_scores = FullRuns(LABELS, AUROC, behind), dict[int, dict[str, Held]]()
    for number in ended_in_order(behind, 80, 6):
        scores = drawn(number)
        known = [one for one in sorted(all_scores) if behind is None or one < number - behind][-AGAINST:]
        told = runs.error(number, scores)
        if known:
            squares = [paired(scores, all_scores[one], LABELS, AUROC)[1] ** 2 for one in known]
            assert told == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=1e-12)
        else:
            assert told is None
        runs.add(number, scores, told)
        all_scores[number] = scores


@pytest.mark.parametrize(("behind", "most"), [(None, AGAINST), (3, AGAINST + 7), (10, AGAINST + 21)])
def test_old_scores_are_let_go(behind: int | None, most: int) -> None:
    runs, held = FullRuns(LABELS, AUROC, behind), list[weakref.ref[Held]]()
    for number in ended_in_order(behind, 120, 6):
        scores = drawn(number)
        held.append(weakref.ref(scores["t"]))
        runs.add(number, scores, 0.1)
        del scores
        assert sum(one() is not None for one in held) <= most
    assert len(runs.errors) == 120
