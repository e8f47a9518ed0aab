"""Early stopping by promotion: trials pause at a rung, and the best of those that got there go on (Li et al. 2020)."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sctune.search.rules.base import Decision, Rule
from sctune.search.rules.stopping import Hyperband, rungs_of


@dataclass
class _Peers:
    """Those that are compared with each other at a rung. passed: whom the rung let go on; gone: ended at it."""

    values: dict[int, float] = field(default_factory=dict)
    passed: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)

    def able(self) -> list[int]:
        """Numbers of those that have gone on or can, the best first, the earlier one of equals."""
        able = self.values.keys() - (self.gone - self.passed)
        return sorted(able, key=lambda number: (-self.values[number], number))

    def promotable(self, factor: int) -> list[int]:
        """Of as many as are 1/factor of all, the best that have not gone on yet, the best first."""
        return [number for number in self.able()[: len(self.values) // factor] if number not in self.passed]

    def forget(self, number: int) -> None:
        self.values.pop(number, None)
        self.passed.discard(number)


class PromotionHalving(Rule):
    """Asynchronous successive halving by promotion (Li et al. 2020, Algorithm 2).

    A trial that reaches a rung pauses there, unless it is at once among the best 1/factor of those that have; paused
    ones go on when they come to be among them, those of the highest rung first. Where the stopping variant lets the
    first trials pass whatever they are worth, this one waits for others to compare with. When nothing else is left a
    rung that let nobody pass gives its best one. Trials that failed count nowhere.

    fair: the first rung compares the trials of a method with each other, as `FairHalving` does.
    """

    pauses = True

    def __init__(self, epochs: int, grace: int, factor: int, fair: bool = True) -> None:
        """Rungs are grace * factor**k below `epochs`; the last epoch ends a trial anyway."""
        self.rungs = rungs_of(epochs, grace, factor)
        self._epochs, self._factor, self._fair = epochs, factor, fair
        self._peers: list[dict[str, _Peers]] = [defaultdict(_Peers) for _ in self.rungs]
        self._groups: dict[int, str] = {}

    def join(self, number: int, group: str) -> None:
        self._groups[number] = group

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        index = bisect_right(self.rungs, epoch) - 1
        if index < 0 or epoch >= self._epochs:
            return Decision.CONTINUE
        self._let_pass(number, index)
        peers = self._among(number, index)
        if epoch == self.rungs[index] or number not in peers.values:
            peers.values[number] = value
        if number in peers.promotable(self._factor):
            peers.passed.add(number)
        return Decision.CONTINUE if number in peers.passed else Decision.PAUSE

    def promote(self) -> Sequence[int]:
        named = []
        for peers in self._from_the_top():
            chosen = peers.promotable(self._factor)
            peers.passed.update(chosen)
            named += chosen
        return named

    def promote_last(self) -> Sequence[int]:
        for rung in reversed(self._peers):
            waiting = [peers for peers in rung.values() if peers.able() and not peers.passed]
            named = [peers.able()[0] for peers in waiting]
            for peers, number in zip(waiting, named, strict=True):
                peers.passed.add(number)
            if named:
                return named
        return ()

    def promoted(self, number: int, epoch: int) -> None:
        self._let_pass(number, bisect_right(self.rungs, epoch))

    def ended(self, number: int, failed: bool) -> None:
        for peers in self._from_the_top():
            if failed:
                peers.forget(number)
            elif number in peers.values:
                peers.gone.add(number)

    def _let_pass(self, number: int, index: int) -> None:
        """The trial has gone on past the rungs below `index`."""
        for lower in range(index):
            self._among(number, lower).passed.add(number)

    def _among(self, number: int, index: int) -> _Peers:
        group = self._groups.get(number, "") if self._fair and index == 0 else ""
        return self._peers[index][group]

    def _from_the_top(self) -> Iterator[_Peers]:
        return (peers for rung in reversed(self._peers) for peers in rung.values())


class PromotionHyperband(Hyperband):
    """Hyperband whose brackets promote, drawn as those of `Hyperband`; the last one never pauses a trial."""

    pauses, looks_behind = True, False

    def _bracket(self, index: int, epochs: int, rung: int, factor: int) -> Rule:
        return PromotionHalving(epochs, rung, factor, fair=index == 0)
