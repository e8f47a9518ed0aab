"""A share of the trials that early stopping leaves alone, so that its mistakes can be counted afterwards."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sctune.search.rules.base import Decision, Rule


def is_audited(number: int, share: float, seed: int) -> bool:
    """Whether a trial is one of those that are never stopped: every 1/share-th, from a place that the seed draws.

    share: in [0, 1]; seed: of the study.
    """
    digest = hashlib.sha256(f"{seed}:audit".encode()).digest()
    start = int.from_bytes(digest[:8], "big") / 2**64
    return math.floor((number + 1) * share + start) > math.floor(number * share + start)


@dataclass
class _Shadow:
    """What the rule believes of an audited trial. held: what it reported since the rule paused it."""

    stopped: bool = False
    paused: bool = False
    held: list[tuple[int, float]] = field(default_factory=list)


class Audited(Rule):
    """A rule with exceptions: audited trials go on to their end, and the rule does not know that they do.

    For all other trials it is what it would be if the audited ones had been stopped or paused where it said so.
    audited: trial number -> whether it is one.
    """

    def __init__(self, rule: Rule, audited: Callable[[int], bool]) -> None:
        self.rungs = rule.rungs
        self._rule, self._audited = rule, audited
        self._shadows: dict[int, _Shadow] = {}

    def join(self, number: int, group: str) -> None:
        self._rule.join(number, group)

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        if not self._audited(number):
            return self._rule.decide(number, epoch, value)
        shadow = self._shadows.setdefault(number, _Shadow())
        if shadow.paused:
            shadow.held.append((epoch, value))
        elif not shadow.stopped:
            self._tell(number, shadow, epoch, value)
        return Decision.CONTINUE

    def promote(self) -> Sequence[int]:
        return self._others(self._rule.promote())

    def promote_last(self) -> Sequence[int]:
        # an audited trial that goes on may leave the others as they were
        while named := self._rule.promote_last():
            others = self._others(named)
            if others:
                return others
        return ()

    def promoted(self, number: int, epoch: int) -> None:
        self._rule.promoted(number, epoch)

    def _others(self, named: Sequence[int]) -> list[int]:
        """Those of the named that do pause; the audited ones have been going on all the time."""
        for number in filter(self._audited, named):
            shadow = self._shadows[number]
            held, shadow.held, shadow.paused = shadow.held, [], False
            for place, (epoch, value) in enumerate(held):
                self._tell(number, shadow, epoch, value)
                if shadow.paused:
                    shadow.held = held[place + 1 :]
                if shadow.paused or shadow.stopped:
                    break
        return [number for number in named if not self._audited(number)]

    def _tell(self, number: int, shadow: _Shadow, epoch: int, value: float) -> None:
        decision = self._rule.decide(number, epoch, value)
        shadow.stopped = decision is Decision.STOP
        shadow.paused = decision is Decision.PAUSE


def audited_rule(rule: Rule | None, share: float, seed: int) -> Rule | None:
    """The rule of a study of which this share is audited."""
    return rule if rule is None or not share else Audited(rule, lambda number: is_audited(number, share, seed))
