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
    """What the rule believes of an audited trial. paused: the epoch at which the rule has it paused; passed: the last
    one that it was promoted past; held: what it reported since it was paused; end: its last value with its error, where
    the rule may not know them yet.
    """

    stopped: bool = False
    paused: int | None = None
    passed: int = 0
    held: list[tuple[int, float]] = field(default_factory=list)
    end: tuple[float, float | None] | None = None


class Audited(Rule):
    """A rule with exceptions: audited trials go on to their end, and the rule does not know that they do.

    For all other trials it is what it would be if the audited ones had been stopped or paused where it said so.
    audited: trial number -> whether it is one.
    """

    def __init__(self, rule: Rule, audited: Callable[[int], bool]) -> None:
        self.rungs, self.pauses, self.looks_behind = rule.rungs, rule.pauses, rule.looks_behind
        self.knows_noise = rule.knows_noise
        self._rule, self._audited = rule, audited
        self._shadows: dict[int, _Shadow] = {}
        self._named: list[int] = []

    def join(self, number: int, group: str) -> None:
        self._rule.join(number, group)

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        if not self._audited(number):
            decision = self._rule.decide(number, epoch, value)
        else:
            decision = Decision.CONTINUE
            self._heard(number, epoch, value)
        # at once, and not when a worker is free: so it is the same when stored reports are told again
        self._promote_shadows()
        return decision

    def promote(self) -> Sequence[int]:
        self._promote_shadows()
        named, self._named = self._named, []
        return named

    def promote_last(self) -> Sequence[int]:
        # that an audited trial goes on may leave the others as they were
        while named := self._rule.promote_last():
            moved = self._move(named)
            self._promote_shadows()
            if self._named or not moved:
                break
        return self.promote()

    def promoted(self, number: int, epoch: int) -> None:
        self._rule.promoted(number, epoch)
        self._promote_shadows()

    def completed(self, number: int, value: float, error: float | None) -> None:
        if self._audited(number):
            self._shadows.setdefault(number, _Shadow()).end = value, error
            self._complete(number)
        else:
            self._rule.completed(number, value, error)
        self._promote_shadows()

    def ended(self, number: int, failed: bool) -> None:
        self._rule.ended(number, failed)
        self._promote_shadows()

    def _heard(self, number: int, epoch: int, value: float) -> None:
        shadow = self._shadows.setdefault(number, _Shadow())
        if shadow.paused is not None:
            shadow.held.append((epoch, value))
        elif not shadow.stopped:
            self._tell(number, shadow, epoch, value)

    def _promote_shadows(self) -> None:
        while self._move(self._rule.promote()):
            pass

    def _move(self, named: Sequence[int]) -> bool:
        """Keep the named that really pause for `promote`; tell what the audited ones did meanwhile. Whether any did."""
        self._named += [number for number in named if not self._audited(number)]
        moved = False
        for number in filter(self._audited, named):
            shadow = self._shadows.get(number)
            if shadow is None or shadow.paused is None:
                continue
            moved, shadow.passed, shadow.paused = True, shadow.paused, None
            held, shadow.held = shadow.held, []
            for epoch, value in held:
                self._heard(number, epoch, value)
            self._complete(number)
        return moved

    def _complete(self, number: int) -> None:
        """Tell the rule of an audited trial's end, if it has let the trial come so far."""
        shadow = self._shadows[number]
        if shadow.end is not None and not shadow.stopped and shadow.paused is None:
            (value, error), shadow.end = shadow.end, None
            self._rule.completed(number, value, error)

    def _tell(self, number: int, shadow: _Shadow, epoch: int, value: float) -> None:
        decision = self._rule.decide(number, epoch, value)
        shadow.stopped = decision is Decision.STOP
        # a rule may answer as before where an epoch is told again
        if decision is Decision.PAUSE and epoch > shadow.passed:
            shadow.paused = epoch


def audited_rule(rule: Rule | None, share: float, seed: int) -> Rule | None:
    """The rule of a study of which this share is audited."""
    return rule if rule is None or not share else Audited(rule, lambda number: is_audited(number, share, seed))
