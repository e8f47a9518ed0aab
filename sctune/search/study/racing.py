"""How sure the best trial of a study with replicates is: what all its trials and seeds say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sctune.metrics.objective import Objective
from sctune.metrics.replicates import Standing, standing
from sctune.search.study.leaderboard import TrialRow

NEAR = 0.005
"""In units of the objective: a trial that is so near to the best is as good as the best."""
CONFIDENCE = 2.0
"""Errors of a difference from which on two trials are told apart."""
LEAST = 4
"""Trials with a replicate: of fewer nothing can be said about how trials differ."""
_SHOWN = 5


@dataclass(frozen=True)
class Certainty:
    """Of a trial among all that have a replicate. replicates: its own; trials, trainings: of all.

    best: chance that it is the best of them over all seeds; near: that it is at most NEAR below the best. rivals:
    numbers of those that are not told apart from it. cost: about how many further trainings would tell them apart.
    spread, error, moved: SD among configurations, of a replicate about its trial, and of what a seed does to all, in
    units of the objective.
    """

    trial: int
    replicates: int
    trials: int
    trainings: int
    best: float
    near: float
    rivals: tuple[int, ...]
    cost: int
    spread: float
    error: float
    moved: float

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "rivals": list(self.rivals)}

    @property
    def lines(self) -> list[str]:
        found = [
            f"{self.trainings} whole trainings of {self.trials} trials: the trials differ by {self.spread:.4f} (SD), "
            f"from seed to seed one moves by {self.error:.4f} by itself and all together by {self.moved:.4f}",
            f"chance that trial {self.trial} ({self.replicates} replicates) is the best of them {100 * self.best:.0f} %"
            f", that it is within {NEAR:g} of the best {100 * self.near:.0f} %",
        ]
        if self.rivals:
            shown = ", ".join(map(str, self.rivals[:_SHOWN])) + (", ..." if len(self.rivals) > _SHOWN else "")
            found.append(
                f"not told apart from it: trial(s) {shown}; to settle that would take about {self.cost} more trainings"
            )
        return found


def certainty(rows: Sequence[TrialRow], best: int, epochs: int, objective: Objective) -> Certainty | None:
    """Of trial `best`; epochs: of a replicate. None where fewer than LEAST trials have one."""
    values = {row.number: _merits(row, epochs, objective) for row in rows if row.state != "FAIL"}
    values = {number: merits for number, merits in values.items() if merits}
    if best not in values or len(values) < LEAST:
        return None
    found = standing(values)
    place = found.numbers.index(best)
    first, near = found.chances(NEAR)
    return Certainty(
        trial=best,
        replicates=int(found.counts[place]),
        trials=len(values),
        trainings=int(found.counts.sum()),
        best=float(first[place]),
        near=float(near[place]),
        rivals=_rivals(found, place),
        cost=found.cost_to_settle(place, NEAR, CONFIDENCE),
        spread=found.spread,
        error=found.error,
        moved=found.moved,
    )


def _rivals(found: Standing, place: int) -> tuple[int, ...]:
    """The likelier one first."""
    gaps = found.means[place] - found.means
    near = [other for other in np.argsort(gaps) if gaps[other] < CONFIDENCE * found.gap_errors(place)[other]]
    return tuple(found.numbers[other] for other in near if other != place)


def _merits(row: TrialRow, epochs: int, objective: Objective) -> list[float]:
    """Of a trial's single replicates, from the means after each of them."""
    found: list[float] = []
    for done in range(1, max(row.values, default=0) // epochs + 1):
        mean = row.values.get(done * epochs)
        if mean is None:
            break
        found.append(done * objective.merit(mean) - sum(found))
    return found
