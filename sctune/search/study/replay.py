"""What a scheduler would have made of a study: its stored curves, told to a rule in the order in which they came."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from optuna.trial import FrozenTrial, TrialState

from sctune.search.rules.base import Decision, Rule
from sctune.search.study.full_runs import FullRuns, errors_of, stored_error
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.record import PROMOTED, events_of, reports_of


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
    """A stored trial. group: its method's name; points: (epoch, merit), ascending; promoted: the last epoch that it was
    paused at and promoted past, 0 where it never was; error: of a full run, what the rule was told with its end.
    """

    number: int
    group: str
    points: tuple[tuple[int, float], ...]
    state: TrialState
    promoted: int = 0
    error: float | None = None

    @property
    def full(self) -> bool:
        """Whether it came to its end."""
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
    """The curves of a study by number. order: (number, whether it ended) for each report and for each end before the
    last epoch, as they came; epochs: of a full run.
    """

    by_number: Mapping[int, Curve]
    order: tuple[tuple[int, bool], ...]
    epochs: int

    @property
    def ended(self) -> list[Curve]:
        """Those that have ended other than by a failure."""
        return [one for one in self.by_number.values() if one.state in (TrialState.COMPLETE, TrialState.PRUNED)]

    def last_epoch(self, number: int) -> int:
        """Of a full run of this trial: one epoch where its method trains nothing."""
        curve = self.by_number[number]
        return curve.end if curve.full else self.epochs


def curves_of(
    manifest: StudyManifest, trials: Sequence[FrozenTrial], labels: Mapping[str, Sequence[int]] | None = None
) -> Curves:
    """From a study's record. labels: of the scored images, for paired errors of full runs that it does not hold."""
    space, merit = manifest.build_space(), manifest.build_objective().merit
    found: dict[int, Curve] = {}
    runs = None if labels is None else FullRuns(labels, manifest.build_objective(), manifest.look_behind)
    errors: Mapping[int, float] = {} if runs is None else errors_of(runs, trials)
    for trial in trials:
        reports = reports_of(trial)
        chosen = space.assignments(space.decode(trial.params))
        points = tuple((epoch, merit(trial.intermediate_values[epoch])) for epoch in reports)
        group = str(chosen.get("method.name", space.base.method.name))
        promoted = int(trial.user_attrs.get(PROMOTED, 0))
        error = stored_error(trial) if labels is None else errors.get(trial.number)
        found[trial.number] = Curve(trial.number, group, points, trial.state, promoted, error)
    order = tuple((number, epoch is None) for number, epoch in events_of(trials))
    return Curves(found, order, manifest.replicates * space.epochs)


def replay(curves: Curves, rule: Rule | None, as_recorded: Container[int] = ()) -> dict[int, Outcome]:
    """Number -> what the rule (fresh; None: never stops) makes of each trial.

    A report that came while the rule has its trial paused is told when the trial is promoted. as_recorded: trials whose
    promotions and ends are taken from the record, where several launches have left them: with the study's own rule, and
    all of its trials, what comes out is what happened.
    """
    return _Replay(curves, rule, as_recorded).run()


class _Replay:
    def __init__(self, curves: Curves, rule: Rule | None, as_recorded: Container[int]) -> None:
        self.curves, self.rule, self.as_recorded = curves, rule, as_recorded
        self.arrived = dict.fromkeys(curves.by_number, 0)
        self.told = dict.fromkeys(curves.by_number, 0)
        self.fates: dict[int, Fate] = {}
        self.joined: set[int] = set()

    def run(self) -> dict[int, Outcome]:
        for number, ended in self.curves.order:
            self.join(number)
            self.promote(self.rule.promote() if self.rule else ())
            if ended:
                self.end(number)
                continue
            self.arrived[number] += 1
            if number in self.as_recorded and self.fates.get(number) is Fate.PAUSED:
                self.follow(number)
            self.tell(number)
        # each trial is named once a rung, but a rule of another package may not keep to it
        for _ in self.curves.order:
            if self.rule is None or not (self.promote(self.rule.promote()) or self.promote(self.rule.promote_last())):
                break
        return {number: Outcome(self.fate(number), self.epoch(number)) for number in self.curves.by_number}

    def join(self, number: int) -> None:
        if number not in self.joined and self.rule is not None:
            self.rule.join(number, self.curves.by_number[number].group)
        self.joined.add(number)

    def promote(self, named: Iterable[int]) -> bool:
        """Whether any of the named had paused."""
        paused = [number for number in named if self.fates.get(number) is Fate.PAUSED]
        for number in paused:
            if number in self.as_recorded:
                continue
            del self.fates[number]
            self.tell(number)
        return bool(paused)

    def follow(self, number: int) -> None:
        """A report of a trial that the study promoted."""
        at = self.epoch(number)
        if self.curves.by_number[number].promoted >= at and self.rule is not None:
            self.rule.promoted(number, at)
            del self.fates[number]

    def end(self, number: int) -> None:
        """The trial ended so in the study: by a failure whatever the rule says, or by a rule."""
        failed = self.curves.by_number[number].state is TrialState.FAIL
        recorded = number in self.as_recorded
        if failed and (number not in self.fates or recorded):
            # one that was promoted may have failed before it told anything more
            self.fates[number] = Fate.FAILED
        elif failed or not recorded:
            return
        if self.rule is not None:
            self.rule.ended(number, failed)

    def tell(self, number: int) -> None:
        """All reports of a trial that have come and are not told yet, until the rule has enough of it."""
        curve = self.curves.by_number[number]
        while number not in self.fates and self.told[number] < self.arrived[number]:
            epoch, merit = curve.points[self.told[number]]
            self.told[number] += 1
            # nobody is asked about a trial's last epoch
            if curve.full and epoch == curve.end:
                self.fates[number] = Fate.COMPLETE
                if self.rule is not None:
                    self.rule.completed(number, merit, curve.error)
            elif self.rule is not None:
                decision = self.rule.decide(number, epoch, merit)
                if decision is not Decision.CONTINUE:
                    self.fates[number] = Fate.STOPPED if decision is Decision.STOP else Fate.PAUSED

    def fate(self, number: int) -> Fate:
        return self.fates.get(number, Fate.UNKNOWN)

    def epoch(self, number: int) -> int:
        told = self.told[number]
        return self.curves.by_number[number].points[told - 1][0] if told else 0
