"""What a scheduler would have made of a study: its stored curves, told to a rule in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from optuna.trial import FrozenTrial, TrialState

from sctune.search.rules.base import Decision, Rule
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.record import reports_of


class Fate(Enum):
    """What becomes of a trial; its values are what people read."""

    COMPLETE = "full"
    STOPPED = "stopped"
    PAUSED = "paused"
    """And not promoted."""
    FAILED = "failed"
    UNKNOWN = "unknown"
    """It would have gone on, and its curve ends."""


@dataclass(frozen=True)
class Curve:
    """A stored trial. group: its method's name; points: (epoch, merit), ascending; full: whether it came to its end."""

    number: int
    group: str
    points: tuple[tuple[int, float], ...]
    state: TrialState

    @property
    def full(self) -> bool:
        return self.state is TrialState.COMPLETE

    @property
    def end(self) -> int:
        """The last stored epoch, 0 where there is none."""
        return self.points[-1][0] if self.points else 0


@dataclass(frozen=True)
class Outcome:
    """epoch: the last one that the trial is trained to, as far as that is known."""

    fate: Fate
    epoch: int


@dataclass(frozen=True)
class Curves:
    """The curves of a study by number. order: a number for each report, as they came; epochs: of a full run."""

    by_number: Mapping[int, Curve]
    order: tuple[int, ...]
    epochs: int

    @property
    def ended(self) -> list[Curve]:
        """Those that have ended other than by a failure."""
        return [one for one in self.by_number.values() if one.state in (TrialState.COMPLETE, TrialState.PRUNED)]

    def last_epoch(self, number: int) -> int:
        """Of a full run of this trial: one epoch where its method trains nothing."""
        curve = self.by_number[number]
        return curve.end if curve.full else self.epochs


def curves_of(manifest: StudyManifest, trials: Sequence[FrozenTrial]) -> Curves:
    """From a study's record."""
    space, merit = manifest.build_space(), manifest.build_objective().merit
    found: dict[int, Curve] = {}
    arrivals: list[tuple[int, int]] = []
    for trial in trials:
        reports = reports_of(trial)
        chosen = space.assignments(space.decode(trial.params))
        points = tuple((epoch, merit(trial.intermediate_values[epoch])) for epoch in reports)
        group = str(chosen.get("method.name", space.base.method.name))
        found[trial.number] = Curve(trial.number, group, points, trial.state)
        arrivals += [(report["time"], trial.number) for report in reports.values()]
    return Curves(found, tuple(number for _, number in sorted(arrivals)), space.epochs)


def replay(curves: Curves, rule: Rule | None) -> dict[int, Outcome]:
    """Number -> what the rule (fresh; None: never stops) makes of each trial.

    A report that came while the rule has its trial paused is told when the trial is promoted. With the study's own
    rule this is what happened.
    """
    return _Replay(curves, rule).run()


class _Replay:
    def __init__(self, curves: Curves, rule: Rule | None) -> None:
        self.curves, self.rule = curves, rule
        self.arrived = dict.fromkeys(curves.by_number, 0)
        self.told = dict.fromkeys(curves.by_number, 0)
        self.fates: dict[int, Fate] = {}
        for curve in curves.by_number.values():
            if rule is not None:
                rule.join(curve.number, curve.group)

    def run(self) -> dict[int, Outcome]:
        for number in self.curves.order:
            self.promote(self.rule.promote() if self.rule else ())
            self.arrived[number] += 1
            self.tell(number)
        while self.rule is not None and any(fate is Fate.PAUSED for fate in self.fates.values()):
            named = self.rule.promote() or self.rule.promote_last()
            if not named:
                break
            self.promote(named)
        return {number: Outcome(self.fate(number), self.epoch(number)) for number in self.curves.by_number}

    def promote(self, named: Iterable[int]) -> None:
        for number in named:
            if self.fates.get(number) is Fate.PAUSED:
                del self.fates[number]
                self.tell(number)

    def tell(self, number: int) -> None:
        """All reports of a trial that have come and are not told yet, until the rule has enough of it."""
        curve = self.curves.by_number[number]
        while number not in self.fates and self.told[number] < self.arrived[number]:
            epoch, merit = curve.points[self.told[number]]
            self.told[number] += 1
            # nobody is asked about a trial's last epoch
            if curve.full and epoch == curve.end:
                self.fates[number] = Fate.COMPLETE
            elif self.rule is not None:
                decision = self.rule.decide(number, epoch, merit)
                if decision is not Decision.CONTINUE:
                    self.fates[number] = Fate.STOPPED if decision is Decision.STOP else Fate.PAUSED

    def fate(self, number: int) -> Fate:
        known = self.fates.get(number)
        if known is not None:
            return known
        return Fate.FAILED if self.curves.by_number[number].state is TrialState.FAIL else Fate.UNKNOWN

    def epoch(self, number: int) -> int:
        told = self.told[number]
        return self.curves.by_number[number].points[told - 1][0] if told else 0
