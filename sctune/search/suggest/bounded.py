"""A sampler that is shown a bounded number of trials: late in a long study a proposal costs little more than early on.

TPE goes through all trials several times for each proposal, and takes a kernel for each. It splits them in a few good
ones and all others. The good ones are shown as they are; the others are the sample of a density, and a thinned sample
of them has the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import nsmallest
from itertools import islice
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sctune.search.suggest.optuna_private import forget_choice, showing
from sctune.search.suggest.wrapped import WrappedSampler

SHOWN = 1000
"""Ended trials up to which all are shown; a few more than so many are shown of any number."""

BEST = 25
"""Optuna's TPE takes so many trials at most as good ones."""

NEWEST = 25
"""The newest trials are those that Optuna's TPE gives their full weight."""

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


class Bounded(WrappedSampler):
    """The inner sampler sees the trials that `chosen` gives."""

    def __init__(self, sampler: BaseSampler, shown: int = SHOWN) -> None:
        super().__init__(sampler)
        self._shown = shown

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        forget_choice(study)
        super().before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        with showing(study, self._choice(study)):
            return super().infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with showing(study, self._choice(study)):
            return super().sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        with showing(study, self._choice(study)):
            return super().sample_independent(study, trial, param_name, param_distribution)

    def _choice(self, study: Study) -> Any:
        maximize = study.direction is StudyDirection.MAXIMIZE
        return lambda trials: chosen(trials, maximize, self._shown)


def chosen(trials: Sequence[FrozenTrial], maximize: bool, shown: int = SHOWN) -> Sequence[FrozenTrial]:
    """The trials to show, in order of their numbers: all of them where no more than `shown` have ended.

    Else those that run, the BEST and the NEWEST that ended, and evenly spaced ones of all that ended (failed ones are
    not shown): of each set of parameters its share, and one at least, since a sampler takes the space from the trials
    that it sees. The same trials give the same choice.
    """
    ended = [trial for trial in trials if trial.state in _ENDED]
    if len(ended) <= shown:
        return trials
    kept = [*_best(ended, maximize), *ended[-NEWEST:]]
    alike: dict[tuple[str, ...], list[FrozenTrial]] = {}
    for trial in ended:
        alike.setdefault(tuple(trial.params), []).append(trial)
    share = max(shown - len(kept), 1) / len(ended)
    for group in alike.values():
        count = math.ceil(share * len(group))
        # the middle of each of so many equal stretches
        kept += [group[(2 * place + 1) * len(group) // (2 * count)] for place in range(count)]
    kept += [trial for trial in trials if trial.state is TrialState.RUNNING]
    by_number = {trial.number: trial for trial in kept}
    return [by_number[number] for number in sorted(by_number)]


def _best(ended: Sequence[FrozenTrial], maximize: bool) -> list[FrozenTrial]:
    """Those that TPE takes as good: full runs by value, then stopped ones, of which those that came furthest lead."""
    sign = -1.0 if maximize else 1.0
    full = [(sign * trial.values[0], place) for place, trial in enumerate(ended) if trial.state is TrialState.COMPLETE]
    best = [ended[place] for _, place in nsmallest(BEST, full)]
    if len(best) == BEST:
        return best

    def rank(trial: FrozenTrial) -> tuple[float, float]:
        if not trial.intermediate_values:
            return 1.0, 0.0
        epoch = max(trial.intermediate_values)
        return -epoch, sign * trial.intermediate_values[epoch]

    stopped = sorted((trial for trial in ended if trial.state is TrialState.PRUNED), key=rank)
    return [*best, *islice(stopped, BEST - len(best))]
