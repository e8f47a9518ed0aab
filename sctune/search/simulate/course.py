"""One simulated search: the controller, the samplers and the rules of a launch, on trainings that are known already.

Workers take the seconds that the trainings took; the clock is simulated. What a launch has besides (starting a worker,
checkpoints, nodes that are lost) takes no time here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from optuna.trial import TrialState

from sctune.metrics.objective import Objective
from sctune.report import EpochReport
from sctune.search.rules.base import Decision, Rule
from sctune.search.run.controller import End, EndReason, TrialController
from sctune.search.space.finite import FiniteSpace
from sctune.search.study.full_runs import FullRuns
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.unrecorded import Unrecorded
from sctune.search.suggest.nearest import Moved, Nearest


class Told(Protocol):
    """A trial as it trains: gives its report after each further epoch."""

    def next(self) -> EpochReport: ...


@dataclass(frozen=True)
class Trained:
    """A trial of a simulated search. place: of its configuration; state: how it ended; value: its last one; epochs:
    that it was trained for; moved: how far its proposal was moved, None for a given point.
    """

    place: int
    state: TrialState
    value: float | None
    epochs: int
    moved: Moved | None


@dataclass(frozen=True)
class Simulated:
    """A search that has come to its end. trials: in order of their numbers; seconds: when its last worker was done;
    busy: of all workers together. reason: why it ended.
    """

    trials: tuple[Trained, ...]
    seconds: float
    busy: float
    reason: EndReason

    @property
    def epochs(self) -> int:
        """That all trials together were trained for."""
        return sum(trial.epochs for trial in self.trials)

    def best(self, objective: Objective) -> Trained | None:
        """The best full run, the earlier one of equals; None where there is none."""
        full = [trial for trial in self.trials if trial.state is TrialState.COMPLETE and trial.value is not None]
        return max(full, key=lambda trial: objective.merit(trial.value or 0.0), default=None)


def simulate(
    manifest: StudyManifest,
    space: FiniteSpace,
    begin: Callable[[int], Told],
    slots: int,
    rule: Callable[[Callable[[int], int]], Rule | None],
    labels: Mapping[str, Sequence[int]] | None = None,
) -> Simulated:
    """Run a search of the manifest's sampler and trials to its end.

    begin: place of a configuration -> the trial that trains it. slots: workers. rule: makes the fresh rule, given which
    configuration a trial's number has. labels: of the scored images, where the study `tells_noise`.
    """
    found: dict[int, int] = {}
    made = rule(lambda number: found[number])
    runs = None
    if manifest.tells_noise and labels:
        runs = FullRuns(labels, manifest.build_objective(), manifest.look_behind)
    controller = TrialController(manifest, space, Unrecorded(), rule=made, runs=runs)
    return _Clock(controller, space, begin, found).run(slots)


class _Clock:
    """found: number of a trial -> place of its configuration, filled here."""

    def __init__(
        self, controller: TrialController, space: FiniteSpace, begin: Callable[[int], Told], found: dict[int, int]
    ) -> None:
        self._controller, self._space, self._begin, self._found = controller, space, begin, found
        self._told: dict[int, Told] = {}
        self._epochs: dict[int, int] = {}
        self._live: list[tuple[float, int, int, EpochReport]] = []
        self._order = count()
        self._now = self._busy = 0.0

    def run(self, slots: int) -> Simulated:
        while True:
            while len(self._live) < slots and (number := self._next()) is not None:
                self._train(number)
            if not self._live:
                return self._summed()
            self._now, _, number, report = heapq.heappop(self._live)
            self._report(number, report)

    def _next(self) -> int | None:
        assignment = self._controller.next()
        if assignment is None:
            return None
        number = assignment.number
        if number not in self._told:
            self._found[number] = self._space.place(self._controller.suggester.params(number))
            self._told[number] = self._begin(self._found[number])
        return number

    def _train(self, number: int) -> None:
        report = self._told[number].next()
        seconds = report.metrics.get("seconds", 0.0)
        self._busy += seconds
        self._epochs[number] = self._epochs.get(number, 0) + 1
        heapq.heappush(self._live, (self._now + seconds, next(self._order), number, report))

    def _report(self, number: int, report: EpochReport) -> None:
        controller = self._controller
        # nobody is asked about a trial's last epoch
        if report.last or controller.decide(number, report) is not Decision.CONTINUE:
            controller.ended(number, report)
        else:
            controller.reported(number, report)
            self._train(number)

    def _summed(self) -> Simulated:
        end, sampler = self._controller.end or End(EndReason.DONE), self._controller.suggester.sampler
        if end.bug is not None:
            raise end.bug
        moved = sampler.moved if isinstance(sampler, Nearest) else {}
        trials = [
            Trained(
                self._found[one.number],
                one.state,
                None if one.value is None else float(one.value),
                self._epochs[one.number],
                moved.get(one.number),
            )
            for one in self._controller.suggester.trials()
        ]
        return Simulated(tuple(trials), self._now, self._busy, end.reason)
