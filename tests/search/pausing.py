"""A rule that pauses and promotes, as another package would bring it: successive halving by promotion (Li et al. 2020).

Every trial pauses at every rung, and the best of each `factor` of those that got there go on.
"""

from __future__ import annotations

from collections.abc import Sequence

from sctune.search.rules.base import Decision, Rule, RuleSettings


class PromotingHalving(Rule):
    """Knows whom it promoted from its own answers and, after a resume, from the reports beyond a rung."""

    def __init__(self, settings: RuleSettings) -> None:
        self._factor = settings.factor
        self.rungs = tuple(range(settings.grace, settings.epochs))
        self._values: dict[int, dict[int, float]] = {rung: {} for rung in self.rungs}
        self._promoted: dict[int, set[int]] = {rung: set() for rung in self.rungs}

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        for rung in self.rungs:
            if rung < epoch and number in self._values[rung]:
                self._promoted[rung].add(number)
        if epoch not in self._values:
            return Decision.CONTINUE
        self._values[epoch][number] = value
        return Decision.PAUSE

    def promote(self) -> Sequence[int]:
        for rung in reversed(self.rungs):
            values = self._values[rung]
            ranked = sorted(values, key=lambda number: (-values[number], number))
            for number in ranked[: len(ranked) // self._factor]:
                if number not in self._promoted[rung]:
                    self._promoted[rung].add(number)
                    return [number]
        return []
