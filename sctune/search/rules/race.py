"""Racing: further replicates for the trials that may be the best, and rules that judge within the first replicate.

A trial of several replicates is one curve: its replicates one after another, each of `epochs` epochs, and after each of
them the mean of those that are through (trial/course.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sctune.metrics.replicates import Standing, standing
from sctune.search.rules.base import Decision, Rule

ADMITTED = 1.0
"""A trial races on while its mean is below the leader's by no more than so many errors of the difference."""
HOPELESS = 2.33
"""Below it by more than so many (chance .01) it is stopped when its replicate ends, and gives its checkpoint back."""
PACE = 0.25
"""Further replicates for each trial that has one, while new trials still begin."""
LEAST = 4
"""Trials with a replicate before anybody gets a second one while new trials still begin."""


def further_replicates(trials: int, replicates: int) -> int:
    """How many a race of so many trials spends beside the first ones: half as many, and enough for one full run."""
    return max(trials // 2, replicates - 1)


class WithinFirst(Rule):
    """A rule that judges a trial's first replicate alone; who passes it is trained on all."""

    def __init__(self, rule: Rule, epochs: int, replicates: int) -> None:
        """epochs: of a replicate, for which the rule was made."""
        self._rule, self._epochs = rule, epochs
        self.pauses, self.looks_behind, self.knows_noise = rule.pauses, rule.looks_behind, rule.knows_noise
        self.rungs = (*(rung for rung in rule.rungs if rung < epochs), *ends_of(epochs, replicates))

    def join(self, number: int, group: str) -> None:
        self._rule.join(number, group)

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        if epoch < self._epochs:
            return self._rule.decide(number, epoch, value)
        if epoch == self._epochs:
            # to the rule this is the end of a full run
            self._rule.completed(number, value, None)
        return Decision.CONTINUE

    def promote(self) -> Sequence[int]:
        return self._rule.promote()

    def promote_last(self) -> Sequence[int]:
        return self._rule.promote_last()

    def promoted(self, number: int, epoch: int) -> None:
        self._rule.promoted(number, epoch)

    def ended(self, number: int, failed: bool) -> None:
        self._rule.ended(number, failed)


class Race(WithinFirst):
    """Trials pause after each replicate; the next one goes to those that may still be the best, by a paired comparison.

    The leader is the trial with the highest mean by the mixed model of `metrics.replicates`, which shrinks what few
    replicates say. Whoever is not below it by more than ADMITTED errors of the difference races on: he with the fewest
    replicates first, of equals the better one. While new trials begin, a fifth of the trainings race; then the rest of
    `further_replicates` does. What it takes to bring the leader to all its replicates is kept for it, so that the end
    is between trials of the same ones. Another rule judges within the first replicate. Trials that failed count
    nowhere.
    """

    def __init__(self, rule: Rule, epochs: int, replicates: int, trials: int) -> None:
        """epochs: of a replicate; replicates: of a full run, 2 or more; trials: that the study is to have."""
        super().__init__(rule, epochs, replicates)
        self.pauses, self.looks_behind = True, False
        self._replicates, self._trials = replicates, trials
        self._joined: set[int] = set()
        self._means: dict[int, dict[int, float]] = {}
        self._begun: dict[int, int] = {}
        self._promoted: dict[int, int] = {}
        self._gone: set[int] = set()
        self._found: Standing | None = None

    def join(self, number: int, group: str) -> None:
        super().join(number, group)
        self._joined.add(number)

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        replicate = -(-epoch // self._epochs)
        # a promotion that the driver passed over is taken back
        self._begun[number] = max(replicate, self._promoted.get(number, 1))
        within = super().decide(number, epoch, value)
        if epoch % self._epochs:
            return within
        self._tell(number, replicate, value)
        # what a trial tells again, after a loss, was judged when it came
        latest = replicate == self._begun[number] == max(self._means[number])
        return Decision.STOP if latest and self._is_hopeless(number) else Decision.PAUSE

    def completed(self, number: int, value: float, error: float | None) -> None:
        self._begun[number] = self._replicates
        self._tell(number, self._replicates, value)

    def promote(self) -> Sequence[int]:
        n_first = len(self._means)
        if len(self._joined) >= self._trials:
            return self._next()
        # what brings one to his end is kept for the end
        left = further_replicates(self._trials, self._replicates) - self._spent
        if n_first < LEAST or self._spent >= int(PACE * n_first) or left < self._replicates:
            return ()
        return self._next(keep=False)

    def promote_last(self) -> Sequence[int]:
        # no more trials begin, even where the space had fewer than were asked for
        self._trials = min(self._trials, len(self._joined))
        named = self._next()
        through = [number for number, begun in self._begun.items() if begun >= self._replicates]
        if named or set(through) - self._gone:
            return named
        found = self._standing()
        return () if found is None else self._name(found.numbers[self._leader(found)])

    def promoted(self, number: int, epoch: int) -> None:
        super().promoted(number, epoch)
        self._promoted[number] = max(self._promoted.get(number, 1), epoch // self._epochs + 1)
        self._begun[number] = max(self._begun.get(number, 1), self._promoted[number])

    def ended(self, number: int, failed: bool) -> None:
        super().ended(number, failed)
        self._gone.add(number)
        if failed:
            self._means.pop(number, None)
            self._found = None

    @property
    def _spent(self) -> int:
        return sum(begun - 1 for begun in self._begun.values() if begun > 1)

    def _tell(self, number: int, replicate: int, value: float) -> None:
        if self._means.setdefault(number, {}).get(replicate) != value:
            self._means[number][replicate] = value
            self._found = None

    def _standing(self) -> Standing | None:
        """Of all that have a replicate; none where nobody can lead any more."""
        if not self._means.keys() - self._gone:
            return None
        if self._found is None:
            self._found = standing({number: _own_values(means) for number, means in self._means.items()})
        return self._found

    def _leader(self, found: Standing) -> int:
        able = [place for place, number in enumerate(found.numbers) if number not in self._gone]
        return max(able, key=lambda place: (found.means[place], -place))

    def _is_hopeless(self, number: int) -> bool:
        found = self._standing()
        if found is None or len(found.numbers) < LEAST:
            return False
        place, leader = found.numbers.index(number), self._leader(found)
        return bool(found.means[leader] - found.means[place] > HOPELESS * found.gap_errors(leader)[place])

    def _next(self, keep: bool = True) -> Sequence[int]:
        """Who gets the next replicate, nobody where all that are left wait for those that run.

        keep: what brings the leader to its end is for nobody else.
        """
        found = self._standing()
        left = further_replicates(self._trials, self._replicates) - self._spent
        if found is None or left <= 0:
            return ()
        leader = self._leader(found)
        number = found.numbers[leader]
        needed = self._replicates - self._begun[number]
        if keep and needed >= left:
            return self._name(number)
        admitted = found.means[leader] - found.means <= ADMITTED * found.gap_errors(leader)
        racing = [
            (self._begun[other], -found.means[place], other)
            for place, other in enumerate(found.numbers)
            if admitted[place] and self._waits(other)
        ]
        return self._name(min(racing)[2]) if racing else ()

    def _waits(self, number: int) -> bool:
        """Whether it has told all that it was to train, and has not trained on everything."""
        begun = self._begun[number]
        return number not in self._gone and begun < self._replicates and begun in self._means[number]

    def _name(self, number: int) -> Sequence[int]:
        if not self._waits(number):
            return ()
        self._begun[number] += 1
        return (number,)


def ends_of(epochs: int, replicates: int) -> tuple[int, ...]:
    """Epochs at which a replicate ends, but the last one's."""
    return tuple(epochs * done for done in range(1, replicates))


def _own_values(means: dict[int, float]) -> Sequence[float]:
    """Merits of the single replicates, from the means over the first 1, 2, ... of them."""
    sums = [0.0, *(done * means[done] for done in sorted(means))]
    return list(np.diff(sums))
