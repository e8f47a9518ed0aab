"""Early stopping: the rules that sctune ships, which stop a trial or let it go on."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from sctune.search.rules.base import Decision, Rule
from sctune.search.rules.outlook import NO_BAR, Lower, as_it_is


@dataclass
class _Judged:
    """What a trial reported at a rung, and the bar for it: the quantile of those who were there before it, lowered."""

    epoch: int
    value: float
    bar: float


class SuccessiveHalving(Rule):
    """Asynchronous successive halving by stopping (Li et al. 2020, the stopping variant).

    At each rung a trial must not be below the (1 - 1/factor) quantile of the values recorded there before it, or,
    with `behind`, by trials that are more than so many numbers before it.
    """

    looks_behind = True

    def __init__(
        self, epochs: int, grace: int, factor: int, behind: int | None = None, lower: Lower = as_it_is
    ) -> None:
        """Rungs are grace * factor**k below `epochs`; the last epoch ends a trial anyway. lower: makes a bar lower."""
        self.rungs = rungs_of(epochs, grace, factor)
        self._behind, self._lower = behind, lower
        self._epochs = epochs
        self._share = 1 - 1 / factor
        self._judged: dict[int, dict[int, _Judged]] = {rung: {} for rung in self.rungs}

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        return Decision.stop_if(self._stops(number, epoch, value))

    def _stops(self, number: int, epoch: int, value: float) -> bool:
        # the highest rung reached; a trial that went past a rung unseen is judged by its next report
        index = bisect_right(self.rungs, epoch)
        if index == 0 or epoch >= self._epochs:
            return False
        peers = self._judged[self.rungs[index - 1]]
        if number not in peers:
            values = [peer.value for other, peer in peers.items() if _counts(other, number, self._behind)]
            bar = float(np.quantile(values, self._share)) if values else NO_BAR
            peers[number] = _Judged(epoch, value, self._lower(bar, number, self.rungs[index - 1], values))
        own = peers[number]
        if epoch == own.epoch:
            own.value = value
        return own.value < own.bar


class FairHalving(Rule):
    """Successive halving whose first rung compares the trials of a method with each other, and later ones all of them.

    A method that learns slowly is then not stopped for what another one knows after its first epochs. In a study of one
    method it is `SuccessiveHalving`.
    """

    looks_behind = True

    def __init__(
        self, epochs: int, grace: int, factor: int, behind: int | None = None, lower: Lower = as_it_is
    ) -> None:
        self.rungs = rungs_of(epochs, grace, factor)
        self._later = self.rungs[1] if len(self.rungs) > 1 else epochs
        self._first: dict[str, SuccessiveHalving] = defaultdict(
            lambda: SuccessiveHalving(self._later, grace, factor, behind, lower)
        )
        self._rest = SuccessiveHalving(epochs, self._later, factor, behind, lower)
        self._groups: dict[int, str] = {}

    def join(self, number: int, group: str) -> None:
        self._groups[number] = group

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        rule = self._rest if epoch >= self._later else self._first[self._groups.get(number, "")]
        return rule.decide(number, epoch, value)


class Hyperband(Rule):
    """Asynchronous Hyperband: every trial runs in one bracket of successive halving (Li et al. 2018).

    Bracket k starts at rung k, the last one never stops a trial. The bracket is drawn from the study's seed and the
    trial's number alone, with Hyperband's own shares, so that a resumed study draws the same. The first rung, which
    bracket 0 alone has, compares within a method as `FairHalving` does.
    """

    looks_behind = True

    def __init__(
        self, epochs: int, grace: int, factor: int, seed: int, behind: int | None = None, lower: Lower = as_it_is
    ) -> None:
        self.rungs = rungs_of(epochs, grace, factor)
        self._behind, self._lower = behind, lower
        self.brackets = [self._bracket(index, epochs, rung, factor) for index, rung in enumerate(self.rungs)]
        n_rungs = len(self.rungs)
        sizes = [math.ceil((n_rungs + 1) / (s + 1) * factor**s) for s in range(n_rungs, -1, -1)]
        self._edges = np.cumsum(sizes) / sum(sizes)
        self._seed = seed

    def bracket_of(self, number: int) -> int:
        """In 0 .. number of rungs; the last one runs to the end."""
        digest = hashlib.sha256(f"{self._seed}:{number}".encode()).digest()
        uniform = int.from_bytes(digest[:8], "big") / 2**64
        return int(np.searchsorted(self._edges, uniform, side="right"))

    def join(self, number: int, group: str) -> None:
        for bracket in self.brackets:
            bracket.join(number, group)

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        bracket = self.bracket_of(number)
        if bracket == len(self.brackets):
            return Decision.CONTINUE
        return self.brackets[bracket].decide(number, epoch, value)

    def promote(self) -> Sequence[int]:
        return [number for bracket in self.brackets for number in bracket.promote()]

    def promote_last(self) -> Sequence[int]:
        return [number for bracket in self.brackets for number in bracket.promote_last()]

    def promoted(self, number: int, epoch: int) -> None:
        bracket = self.bracket_of(number)
        if bracket < len(self.brackets):
            self.brackets[bracket].promoted(number, epoch)

    def ended(self, number: int, failed: bool) -> None:
        for bracket in self.brackets:
            bracket.ended(number, failed)

    def _bracket(self, index: int, epochs: int, rung: int, factor: int) -> Rule:
        kind = SuccessiveHalving if index else FairHalving
        return kind(epochs, rung, factor, self._behind, self._lower)


class MedianStopping(Rule):
    """Stop a trial whose best value so far is below the median of the others' running means (Golovin et al. 2017).

    From `grace` on, once `min_samples` other trials have got as far: those of its own method at the epochs before
    grace * factor, where other methods may know more or less by then, and all of them later.
    """

    looks_behind = True

    def __init__(
        self,
        epochs: int,
        grace: int,
        factor: int = 1,
        min_samples: int = 3,
        behind: int | None = None,
        lower: Lower = as_it_is,
    ) -> None:
        self._epochs, self._grace, self._min_samples, self._behind = epochs, grace, min_samples, behind
        self._lower = lower
        self._later = grace * factor
        self._curves: dict[int, dict[int, float]] = {}
        self._bars: dict[int, dict[int, float]] = {}
        self._means = _RunningMeans()
        self._own_means: dict[str, _RunningMeans] = defaultdict(_RunningMeans)
        self._groups: dict[int, str] = {}

    def join(self, number: int, group: str) -> None:
        self._groups[number] = group

    def decide(self, number: int, epoch: int, value: float) -> Decision:
        return Decision.stop_if(self._stops(number, epoch, value))

    def _stops(self, number: int, epoch: int, value: float) -> bool:
        # Ray never asks about the last epoch, which ends a trial anyway
        if epoch >= self._epochs:
            return False
        curve = self._curves.setdefault(number, {})
        bars = self._bars.setdefault(number, {})
        latest = max(curve, default=epoch - 1)
        own_means = self._own_means[self._groups.get(number, "")]
        if self._grace <= epoch and epoch > latest:
            # its own mean is not among them yet
            known = self._means if epoch >= self._later else own_means
            means = known.at(epoch) if self._behind is None else known.before(epoch, number - self._behind)
            bar = _median(means) if len(means) >= self._min_samples else NO_BAR
            bars[epoch] = self._lower(bar, number, epoch, means)
        curve[epoch] = value
        for kept in (self._means, own_means):
            kept.update(number, curve, min(epoch, latest + 1))
        return any(self._best(curve, judged) < bar for judged, bar in bars.items() if judged <= epoch)

    @staticmethod
    def _best(curve: dict[int, float], epoch: int) -> float:
        return max(value for reached, value in curve.items() if reached <= epoch)


class _RunningMeans:
    """Epoch -> the running means there of all trials that have got as far, sorted: a report costs the same in a study
    of thousands of trials."""

    def __init__(self) -> None:
        self._sorted: dict[int, list[float]] = {}
        self._of_trial: dict[tuple[int, int], float] = {}
        self._newest = -1

    def at(self, epoch: int) -> list[float]:
        return self._sorted.get(epoch, [])

    def before(self, epoch: int, number: int) -> list[float]:
        """Those of trials with a lower number, sorted."""
        means = list(self.at(epoch))
        # few are so young
        for other in range(max(number, 0), self._newest + 1):
            mean = self._of_trial.get((other, epoch))
            if mean is not None:
                del means[bisect_left(means, mean)]
        return means

    def update(self, number: int, curve: Mapping[int, float], since: int) -> None:
        """Take over a trial's curve where it is new or was changed, from epoch `since` on."""
        self._newest = max(self._newest, number)
        for epoch in range(since, max(curve) + 1):
            means = self._sorted.setdefault(epoch, [])
            before = self._of_trial.get((number, epoch))
            if before is not None:
                del means[bisect_left(means, before)]
            mean = fmean(value for reached, value in curve.items() if reached <= epoch)
            self._of_trial[number, epoch] = mean
            insort(means, mean)


def _counts(other: int, number: int, behind: int | None) -> bool:
    """Whether a trial is judged by another one."""
    return behind is None or other < number - behind


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def rungs_of(epochs: int, grace: int, factor: int) -> tuple[int, ...]:
    """grace * factor**k, as far as they lie below `epochs`."""
    rungs = []
    while grace < epochs:
        rungs.append(grace)
        grace *= factor
    return tuple(rungs)
