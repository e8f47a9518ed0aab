"""How well full runs are told apart on the selection images: what a rule is told of each one's end beside its value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from sctune.metrics.objective import Objective
from sctune.search.study.paired import has_scores, paired
from sctune.search.study.record import events_of

PAIRED_ERROR = "paired_error"
"""User attribute of a full run of a study that `tells_noise`, where there was another run to compare with."""
AGAINST = 4
"""Earlier full runs that one is compared with: error bars of pairs differ little, and a resampled one takes a while."""

Scores = Mapping[str, Sequence[float]]


class FullRuns:
    """The full runs of a study so far, with their scores of the selection images.

    labels: task key -> labels of the scored images. behind: a run is compared with those that are more than so many
    numbers before it, which have all ended by then; None: with those that ended before. errors: number -> what `error`
    said of a run.
    """

    def __init__(self, labels: Mapping[str, Sequence[int]], objective: Objective, behind: int | None = None) -> None:
        self._labels, self._objective, self._behind = labels, objective, behind
        self._scores: dict[int, Scores] = {}
        self.errors: dict[int, float] = {}

    def add(self, number: int, scores: Scores, error: float | None) -> None:
        """A run that has ended; scores that are not stored are left out. error: of `error`, where it is known."""
        if has_scores(scores, self._labels):
            self._scores[number] = scores
            self._drop_old()
        if error is not None:
            self.errors[number] = error

    def _drop_old(self) -> None:
        """Keep the scores of those only that a run may yet be compared with.

        With a look-behind all before the newest number less `behind` have ended, so that no run to come looks further
        back than twice as far.
        """
        newest = max(self._scores)
        reach = newest + 1 if self._behind is None else newest - 2 * self._behind
        old = sorted(one for one in self._scores if one < reach)
        for one in old[:-AGAINST]:
            del self._scores[one]

    def error(self, number: int, scores: Scores) -> float | None:
        """Root mean square of the paired standard errors of a run against the latest ones that it may know."""
        known = [one for one in sorted(self._scores) if self._behind is None or one < number - self._behind]
        if not known or not has_scores(scores, self._labels):
            return None
        errors = [paired(scores, self._scores[one], self._labels, self._objective)[1] for one in known[-AGAINST:]]
        return math.sqrt(float(np.mean(np.square(errors))))


def stored_error(trial: FrozenTrial) -> float | None:
    return trial.user_attrs.get(PAIRED_ERROR)


def refill(runs: FullRuns, trials: Iterable[FrozenTrial]) -> None:
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            runs.add(trial.number, trial.user_attrs.get("scores", {}), stored_error(trial))


def errors_of(runs: FullRuns, trials: Sequence[FrozenTrial]) -> Mapping[int, float]:
    """Number -> error of each stored full run, as it was told or else worked out now; runs: none yet."""
    by_number = {trial.number: trial for trial in trials}
    for number, epoch in events_of(trials):
        trial = by_number[number]
        if trial.state is not TrialState.COMPLETE or epoch != max(trial.intermediate_values):
            continue
        scores = trial.user_attrs.get("scores", {})
        error = stored_error(trial)
        runs.add(number, scores, runs.error(number, scores) if error is None else error)
    return runs.errors
