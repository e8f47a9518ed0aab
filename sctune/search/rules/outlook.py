"""How far a trial's place at a rung is from its place at the end, and the bar that allows for it (`--stop-confidence`).

A trial with value v under a bar b ends at v + g, and what the bar stands for at b + h: g and h are gains between here
and the end, drawn alike. At the end the selection images tell two trials apart with the paired error e. So the chance
that the trial ends above the bar is T((v - b) / s), with s^2 = 2 spread^2 + e^2 and T of Student's t; to stop where it
is below 1 - p is to lower the bar by s times the p quantile of T.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from scipy.special import ndtri, stdtrit

from sctune.search.rules.base import LEAST_CONFIDENCE, Decision, Rule

NO_BAR = -math.inf
PRIOR_RUNS = 3
"""What is taken for known of the spread of gains before any run has ended counts as much as so many runs."""
LEAST = 2
"""Values at a rung without which nothing is known of any spread."""

Lower = Callable[[float, int, int, Sequence[float]], float]
"""(bar, number of the trial, epoch, the values that the bar was made from) -> the bar that it must not be below."""


def as_it_is(bar: float, number: int, epoch: int, values: Sequence[float]) -> float:
    """`Lower` of a rule that knows no noise."""
    return bar


class Outlook:
    """What the trials of a study tell of the way from an epoch to the end.

    confidence: p, in [0.5, 1); at 0.5 bars stay as they are. behind: as in `RuleSettings`. best: values are the best so
    far, which the median rule compares, not those of the epoch itself. groups: trial number -> its method; gains of
    another method count from epoch `shared` on alone. Only runs that came to their end tell a gain, so those that were
    let through: a selected sample, of which the prior, as wide as the values themselves, is the counterweight.
    """

    def __init__(self, confidence: float, shared: int, behind: int | None = None, best: bool = False) -> None:
        self._confidence, self._shared, self._behind, self._best = confidence, shared, behind, best
        self._groups: dict[int, str] = {}
        self._values: dict[int, dict[int, float]] = defaultdict(dict)
        self._latest: dict[int, float] = {}
        self._ends: dict[int, float] = {}
        self._errors: dict[int, float] = {}

    def join(self, number: int, group: str) -> None:
        self._groups[number] = group

    def heard(self, number: int, epoch: int, value: float) -> None:
        """What was told first of an epoch stays, as it does in the record."""
        if number in self._values[epoch]:
            return
        if self._best:
            value = self._latest[number] = max(value, self._latest.get(number, value))
        self._values[epoch][number] = value

    def completed(self, number: int, value: float, error: float | None) -> None:
        self._ends.setdefault(number, value)
        if error is not None:
            self._errors.setdefault(number, error)

    def lower(self, bar: float, number: int, epoch: int, values: Sequence[float]) -> float:
        """See `Lower`; no bar where nothing is known of the spread."""
        if self._confidence == LEAST_CONFIDENCE or not math.isfinite(bar):
            return bar
        if len(values) < LEAST:
            return NO_BAR
        gains = self._gains(number, epoch)
        freedom = PRIOR_RUNS + max(len(gains) - 1, 0)
        # as if values at the rung told no more than half of where a trial ends
        prior = _robust_deviation(values) ** 2
        spread = (PRIOR_RUNS * prior + float(np.var(gains) * len(gains) if gains else 0.0)) / freedom
        errors = [self._errors[other] for other in sorted(self._errors) if self._knows(number, other)]
        paired = float(np.mean(np.square(errors))) if errors else 0.0
        return bar - float(stdtrit(freedom, self._confidence)) * math.sqrt(2 * spread + paired)

    def _gains(self, number: int, epoch: int) -> list[float]:
        """In order of the numbers, whoever came first: sums of them are the same to the last bit."""
        there, group = self._values.get(epoch, {}), self._groups.get(number)
        return [
            self._ends[other] - there[other]
            for other in sorted(self._ends)
            if other in there
            and self._knows(number, other)
            and (epoch >= self._shared or self._groups.get(other) == group)
        ]

    def _knows(self, number: int, other: int) -> bool:
        return self._behind is None or other < number - self._behind


def _robust_deviation(values: Sequence[float]) -> float:
    """Standard deviation of normal values from their median absolute deviation: a trial that diverged hardly counts."""
    middle = median(values)
    return float(median(abs(value - middle) for value in values) / ndtri(0.75))


class Watched(Rule):
    """A rule, and the outlook that lowers its bars, which is told all that the rule is."""

    knows_noise = True

    def __init__(self, rule: Rule, outlook: Outlook) -> None:
        self.rungs, self.pauses, self.looks_behind = rule.rungs, rule.pauses, rule.looks_behind
        self._rule, self._outlook = rule, outlook

    def join(self, number: int, group: str) -> None:
        self._outlook.join(number, group)
        self._rule.join(number, group)

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        decision = self._rule.decide(number, epoch, value)
        self._outlook.heard(number, epoch, value)
        return decision

    def completed(self, number: int, value: float, error: float | None) -> None:
        self._outlook.completed(number, value, error)
