"""The course of a launch: which trial starts next, what becomes of each, and why it all ends. Knows nothing of Ray.

The suggester proposes, the rule judges, the faults decide about trouble, the recorder writes down. Unfinished trials
of earlier launches come first. A trial that is started again is the same trial with the next attempt number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from sctune.config import TrialConfig
from sctune.report import EpochReport, TrialFailure
from sctune.search.cluster.resources import TrialResources
from sctune.search.rules.base import Decision, Rule
from sctune.search.run.back_pressure import OPEN, Gate
from sctune.search.run.faults import FIRST_FAILURES, FailureAction, Faults, WaitingTrials, common_cause
from sctune.search.run.packing import Packing
from sctune.search.run.recorder import RESOURCES, Observer, TrialEnd, TrialRecorder
from sctune.search.run.slots import FREE, Slots
from sctune.search.run.worth import little_gain
from sctune.search.space.definition import Space
from sctune.search.study.full_runs import PAIRED_ERROR, FullRuns, stored_error
from sctune.search.study.full_runs import refill as refill_runs
from sctune.search.study.manifest import LittleGain, StudyManifest
from sctune.search.study.record import PAUSED, PROMOTED, events_of
from sctune.search.study.unrecorded import RecordLike
from sctune.search.suggest.beliefs import start_points
from sctune.search.suggest.samplers import make_sampler
from sctune.search.suggest.suggester import Suggester

T = TypeVar("T")


class EndReason(Enum):
    """Why a launch ended, the less serious first: a more serious reason replaces one that came before it.

    The first three are its natural end. After any other one unfinished trials stay RUNNING in the record, so that the
    next launch goes on with them.
    """

    DONE = 0
    """All trials that were asked for have ended."""
    EXHAUSTED = 1
    """So have all that the space has."""
    LITTLE_GAIN = 2
    """So have those that were worth their time: what is left is expected to gain less than was asked for."""
    STOPPED = 3
    """By a signal or `sctune stop`."""
    OUT_OF_TIME = 4
    """The time budget is spent."""
    HOPELESS = 5
    """The first trials all failed."""
    ABORTED = 6
    """Trouble that no trial is to blame for (a node's data, weights or versions; a full disk), and no way around it."""
    BUG = 7
    """An observer or the rule raised something."""

    @property
    def early(self) -> bool:
        return self not in (EndReason.DONE, EndReason.EXHAUSTED, EndReason.LITTLE_GAIN)


@dataclass(frozen=True)
class End:
    """text: the cause for people; bug: what was raised."""

    reason: EndReason
    text: str = ""
    bug: Exception | None = None


@dataclass(frozen=True)
class Assignment:
    """A trial for a worker. params: dotted fields of the configuration, a variant spelt out.

    launch, first_launch: numbers from 1 of this launch and of the one that began the trial (0: an earlier version
    did). avoid: ids of nodes that it must not go to.
    """

    number: int
    params: Mapping[str, Any]
    attempt: int
    launch: int
    first_launch: int
    resources: TrialResources
    avoid: tuple[str, ...]


@dataclass
class _Trial:
    """What the launch knows of a trial beside what the suggester does.

    taken: what its worker has, of the latest attempt; resources: that it needs more than others, if it does.
    node: where its worker told something last. latest: the epoch that it told last in this launch. pausing: the epoch
    after which the rule wants it paused; paused, promoted: see the record's attributes of these names. yielding: the
    epoch after which its slot goes to another search.
    """

    attempt: int = 0
    first_launch: int = 0
    resources: TrialResources | None = None
    taken: TrialResources | None = None
    node: str = ""
    latest: int | None = None
    pausing: int | None = None
    yielding: int | None = None
    paused: int | None = None
    promoted: int | None = None

    @classmethod
    def stored(cls, trial: FrozenTrial) -> _Trial:
        attrs = trial.user_attrs
        return cls(
            attempt=int(attrs.get("attempt", 0)),
            first_launch=int(attrs.get("first_launch", 0)),
            resources=TrialResources(**attrs[RESOURCES]) if RESOURCES in attrs else None,
            paused=attrs.get(PAUSED),
            promoted=attrs.get(PROMOTED),
        )

    @property
    def is_paused(self) -> bool:
        return self.paused is not None and self.paused != self.promoted


def _of_one_cpu() -> Faults:
    alone = TrialResources(1.0, 0.0)
    return Faults(alone, alone, lambda _node: True)


class TrialController:
    """States, retries and ends of the trials of one launch, each told exactly once to the recorder.

    end: None while the launch goes on. exhausted: says so when no untried configuration is left. little_gain: where the
    search ends by itself, what the rest would have been expected to bring. rule: early stopping. slots: how many trials
    may run at a time.
    """

    def __init__(
        self,
        manifest: StudyManifest,
        space: Space,
        record: RecordLike,
        observers: Sequence[Observer] = (),
        faults: Faults | None = None,
        gate: Gate = OPEN,
        on_left_out: Callable[[str], None] = lambda _line: None,
        rule: Rule | None = None,
        runs: FullRuns | None = None,
        packing: Packing | None = None,
        slots: Slots = FREE,
    ) -> None:
        """faults: decides about trials in trouble (none: of one CPU each); gate, slots: asked before each start.

        on_left_out: told in one line of a node that gets no trials any more. rule: early stopping, fresh: it is
        refilled here. runs: none yet, for a study that `tells_noise`. packing: where trials share GPUs by their needs.
        """
        self.manifest, self.space, self.record = manifest, space, record
        self._objective = objective = manifest.build_objective()
        # rules are told merits: higher is better
        self._merit = objective.merit
        self.end: End | None = None
        self.exhausted: str | None = None
        self.little_gain: LittleGain | None = None
        self._faults = faults or _of_one_cpu()
        self._gate, self.slots, self._on_left_out, self.rule = gate, slots, on_left_out, rule
        self._runs, self._packing = runs, packing
        # no other driver of the study has this number, one that was cut off included
        self._launch = len(manifest.launches) + 1
        trials = record.load()
        self._trials = {trial.number: _Trial.stored(trial) for trial in trials}
        unfinished = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        self._waiting = WaitingTrials(number for number in unfinished if not self._trials[number].is_paused)
        self._paused = [number for number in unfinished if self._trials[number].is_paused]
        self._live, self._begun = set[int](), set[int]()
        self._failures: list[TrialFailure] = []
        self._succeeded = any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        self.suggester = Suggester(
            space,
            self._sampler(len(trials)),
            manifest.sampler_seed,
            trials,
            record.load_study_attrs(),
            first=start_points(space, manifest.priors),
            in_order=manifest.sampler == "grid",
            taken=record.foreign,
            objective=objective,
            behind=manifest.look_behind,
        )
        for number in self._paused:
            self.suggester.pause(number)
        self._recorder = TrialRecorder(record, self.suggester, trials, self._launch, observers, self._found_bug)
        if runs is not None:
            refill_runs(runs, trials)
        if rule is not None:
            self._refill(rule, trials, unfinished)
        self._remember_needs()

    def _sampler(self, n_before: int) -> BaseSampler:
        own = self.manifest
        return make_sampler(own.sampler, own.sampler_seed, space=self.space, n_before=n_before, priors=own.priors)

    def _remember_needs(self) -> None:
        """Trials of earlier launches that needed more than others of their class."""
        for number, trial in self._trials.items():
            if self._packing is not None and trial.resources is not None:
                self._packing.ran_out(self._config(number), trial.resources)

    def _refill(self, rule: Rule, trials: Sequence[FrozenTrial], unfinished: Sequence[int]) -> None:
        """Tell the rule what earlier launches told it, in the order in which it came."""
        for trial in trials:
            rule.join(trial.number, self._method(trial.number))
        by_number = {trial.number: trial for trial in trials}
        for number, epoch in events_of(trials):
            trial = by_number[number]
            if epoch is None:
                rule.ended(number, trial.state is TrialState.FAIL)
                continue
            merit = self._merit(trial.intermediate_values[epoch])
            # nobody is asked about a trial's last epoch
            if trial.state is TrialState.COMPLETE and epoch == max(trial.intermediate_values):
                rule.completed(number, merit, stored_error(trial))
            else:
                rule.decide(number, epoch, merit)
        for number in unfinished:
            promoted = self._trials[number].promoted
            if promoted is not None:
                rule.promoted(number, promoted)

    @property
    def history(self) -> list[tuple[int, int, float]]:
        """(number, epoch, value) of all reports so far, in order of arrival."""
        return self._recorder.history

    @property
    def stopping(self) -> bool:
        """Whether the launch ends before its time; what is unfinished then stays so."""
        return self.end is not None and self.end.reason.early

    @property
    def paused(self) -> tuple[int, ...]:
        """Numbers of the trials that wait to be promoted."""
        return tuple(self._paused)

    def finish(self, end: End) -> None:
        """End the launch. Takes no lock, so signal handlers and timers may call it."""
        if self.end is None or end.reason.value > self.end.reason.value:
            self.end = end

    def next(self) -> Assignment | None:
        """The next trial to start; None: not now, or, where `end` is set by then, no more in this launch."""
        if self.end is not None:
            return None
        paused = self._gate()
        startable = 0 if paused else self._startable()
        room = self.slots.room(len(self._live), len(self._begun & self._live), startable)
        if paused:
            if self._gate.stuck is not None and not self._live:
                self.finish(End(EndReason.ABORTED, self._gate.stuck))
            return None
        # with nothing to start it is to be found out whether this is the end
        if not room and (startable or self._paused):
            return None
        self._promote()
        if self.stopping:
            return None
        number = self._waiting.next_ready()
        if number is not None:
            return self._start_again(number)
        frozen = self._ask()
        if frozen is not None:
            return self._start_new(frozen)
        parked = self._waiting.next_parked()
        if parked is not None:
            return self._start_again(parked)
        # a running trial may yet have to be started again, or have others promoted
        if not self._live and not len(self._waiting):
            if self._promote(last=True):
                return self.next()
            if not self.stopping:
                self._come_to_an_end()
        return None

    def decide(self, number: int, report: EpochReport) -> Decision:
        """The rule's word on a report that does not end its trial; to be asked before the report is handed over."""
        rule, trial, decision = self.rule, self._trials[number], Decision.CONTINUE
        if rule is not None:
            decision = self._guarded(lambda: rule.decide(number, report.epoch, self._merit(report.value)), decision)
        if decision is Decision.CONTINUE and self._yields(report):
            trial.yielding = report.epoch
            return Decision.PAUSE
        if decision is not Decision.PAUSE:
            return decision
        if trial.promoted is not None and report.epoch <= trial.promoted:
            return Decision.CONTINUE
        trial.pausing = report.epoch
        return decision

    def reported(self, number: int, report: EpochReport) -> None:
        """An epoch of a trial that goes on."""
        trial = self._trials[number]
        if self._packing is not None and trial.latest is None:
            self._packing.learn(self._config(number), report.origin.node, report)
        if report.epoch > (trial.latest or 0):
            line = self._faults.got_on(number, report.origin)
            if line is not None:
                self._on_left_out(line)
        trial.node, trial.latest = report.origin.node, report.epoch
        self._recorder.report(number, report)

    def ended(self, number: int, report: EpochReport | None) -> None:
        """A trial's worker is done with it: by itself, by the rule, or because the launch is being stopped.

        report: its last one, which was not handed to `reported`; None where there is none.
        """
        if report is not None:
            self.reported(number, report)
        trial = self._trials[number]
        epoch = trial.latest
        if epoch is None:
            self.lost(number, "")
            return
        self._live.discard(number)
        finished = report is not None and report.last
        if not finished and trial.pausing == epoch:
            self._pause(number, epoch)
        elif not finished and trial.yielding == epoch:
            self._waiting.ready(number)
            self._recorder.wait(number, f"after epoch {epoch} its place goes to another search; it goes on later")
        elif report is not None and finished:
            self._complete(number, report)
        elif not self.stopping:
            reason = f"stopped by {self.manifest.scheduler.name} at epoch {epoch}"
            self._end_trial(number, TrialEnd(TrialState.PRUNED, reason, epoch))

    def began(self, number: int) -> None:
        """A trial got a worker; until then it waits in Ray's queue."""
        self._begun.add(number)

    def failed(self, number: int, failure: TrialFailure) -> None:
        """A trial told its own failure."""
        self._live.discard(number)
        self._carry_out(number, self._faults.told(number, failure, self._taken(number)))

    def lost(self, number: int, error: str, report: EpochReport | None = None) -> None:
        """A trial's worker ended with Ray's message `error`; report: its last one, where it was not handed over."""
        if report is not None:
            self.reported(number, report)
        self._live.discard(number)
        if not self.stopping:
            node = self._trials[number].node or None
            self._carry_out(number, self._faults.lost(number, error, node, self._taken(number)))

    def _startable(self) -> int:
        """Trials that could be started now, but for those that a rule may promote."""
        over = self.exhausted is not None or self.little_gain is not None
        new = 0 if over else min(self.manifest.trials - self.suggester.n_trials, self.suggester.room)
        return len(self._waiting) + max(new, 0)

    def _yields(self, report: EpochReport) -> bool:
        """Whether a trial that would go on gives its place up: where it loses nothing by that."""
        return not report.last and report.origin.kept == report.epoch and self.slots.gives_way()

    def _ask(self) -> FrozenTrial | None:
        n_trials = self.suggester.n_trials
        if n_trials >= self.manifest.trials or self.exhausted is not None or self.little_gain is not None:
            return None
        # a write that failed for good ends the search here; nothing waits for those on their way
        self.record.check()
        if not self.suggester.may_ask:
            return None
        errors = {} if self._runs is None else self._runs.errors
        known, points = self.suggester.known, self.suggester.n_untried
        self.little_gain = little_gain(self.manifest, self._objective, known, n_trials, points, errors)
        if self.little_gain is not None:
            return None
        frozen = self.suggester.ask()
        if frozen is None:
            self.exhausted = f"space exhausted after {n_trials} of {self.manifest.trials}"
        return frozen

    def _promote(self, last: bool = False) -> bool:
        """Whether a trial goes on; last: nothing else is left."""
        rule = self.rule
        if rule is None or not self._paused:
            return False
        nobody: Sequence[int] = ()
        ask = rule.promote_last if last else rule.promote
        named = self._guarded(ask, nobody)
        chosen = [number for number in dict.fromkeys(named) if number in self._paused]
        if last and named and not chosen:
            # they are passed over; each is named once, but a rule of another package may not keep to it
            for _ in self._paused:
                named = self._guarded(ask, nobody)
                chosen = [number for number in dict.fromkeys(named) if number in self._paused]
                if chosen:
                    break
        for number in chosen:
            self._paused.remove(number)
            self._trials[number].promoted = self._trials[number].paused
            self._waiting.ready(number)
            self.suggester.go_on(number)
            self._tell_promoted(rule, number)
        return bool(chosen)

    def _tell_promoted(self, rule: Rule, number: int) -> None:
        epoch = self._trials[number].promoted
        if epoch is not None:
            self._guarded(lambda: rule.promoted(number, epoch), None)

    def _pause(self, number: int, epoch: int) -> None:
        self._trials[number].paused = epoch
        self._paused.append(number)
        self.suggester.pause(number)
        self._recorder.pause(number, epoch, f"paused by {self.manifest.scheduler.name} after epoch {epoch}")

    def _come_to_an_end(self) -> None:
        """Nothing is left to start or to wait for, and the rule has promoted all that it wanted to."""
        while self._paused:
            number = self._paused.pop(0)
            epoch = self._trials[number].paused
            reason = f"paused by {self.manifest.scheduler.name} at epoch {epoch} and not promoted"
            self._end_trial(number, TrialEnd(TrialState.PRUNED, reason, epoch))
        if self.little_gain is not None:
            self.finish(End(EndReason.LITTLE_GAIN, f"the other {self.little_gain.left} trials gain little"))
        else:
            self.finish(End(EndReason.DONE if self.exhausted is None else EndReason.EXHAUSTED, self.exhausted or ""))

    def _carry_out(self, number: int, action: FailureAction) -> None:
        trial = self._trials[number]
        if action.failure is not None:
            self._end_trial(number, TrialEnd(TrialState.FAIL, action.reason, trial.latest, action.failure))
            return
        if action.abort is not None:
            self.finish(End(EndReason.ABORTED, action.abort))
            return
        if action.storage:
            self._gate.doubt()
        if action.left_out is not None:
            self._on_left_out(action.left_out)
        if action.resources is not None:
            trial.resources = action.resources
            if self._packing is not None:
                self._packing.ran_out(self._config(number), action.resources)
            self._waiting.park(number)
        else:
            self._waiting.delay(number, action.wait_s)
        self._recorder.wait(number, action.reason, action.resources)

    def _start_again(self, number: int) -> Assignment:
        trial = self._trials[number]
        trial.attempt += 1
        self._take(number)
        self._recorder.start_again(number, trial.attempt, trial.promoted, self._told_share(number))
        return self._started(number)

    def _start_new(self, frozen: FrozenTrial) -> Assignment:
        self._trials[frozen.number] = _Trial(attempt=1, first_launch=self._launch)
        number, proposal = frozen.number, self.suggester.proposal(frozen.number)
        self._take(number)
        self._recorder.start(frozen, self.space.decode(frozen.params), proposal, self._told_share(number))
        rule = self.rule
        if rule is not None:
            self._guarded(lambda: rule.join(frozen.number, self._method(frozen.number)), None)
        return self._started(frozen.number)

    def _started(self, number: int) -> Assignment:
        trial = self._trials[number]
        trial.pausing = trial.yielding = None
        self._begun.discard(number)
        small = () if self._packing is None else self._packing.avoided(self._config(number))
        self._live.add(number)
        return Assignment(
            number=number,
            # the worker knows configuration fields only
            params=self.space.assignments(self.suggester.params(number)),
            attempt=trial.attempt,
            launch=self._launch,
            first_launch=trial.first_launch,
            resources=self._taken(number),
            avoid=tuple(sorted({*self._faults.avoid(number, self._taken(number)), *small})),
        )

    def _method(self, number: int) -> str:
        """Name of the method that a trial trains."""
        chosen = self.space.assignments(self.suggester.params(number))
        return str(chosen.get("method.name", self.space.base.method.name))

    def _config(self, number: int) -> TrialConfig:
        return self.space.config(self.suggester.params(number))

    def _take(self, number: int) -> None:
        self._trials[number].taken = self._resources(number)

    def _told_share(self, number: int) -> TrialResources | None:
        """What the record keeps of it: where all trials have the same, the manifest does."""
        return None if self._packing is None else self._taken(number)

    def _taken(self, number: int) -> TrialResources:
        return self._trials[number].taken or self._faults.base

    def _resources(self, number: int) -> TrialResources:
        """What a trial is to start with: as planned, or the larger share that it turned out to need."""
        own, packing = self._trials[number].resources, self._packing
        planned = self._faults.base if packing is None else packing.resources(self._config(number))
        return own if own is not None and (packing is None or own.gpus >= planned.gpus) else planned

    def _complete(self, number: int, report: EpochReport) -> None:
        runs, rule, error = self._runs, self.rule, None
        if runs is not None:
            error = runs.error(number, report.scores)
            runs.add(number, report.scores, error)
        attrs = {} if error is None else {PAIRED_ERROR: error}
        self._end_trial(number, TrialEnd(TrialState.COMPLETE, "all epochs done", report.epoch), attrs)
        if rule is not None:
            merit = self._merit(self.suggester.value(number, report.epoch))
            self._guarded(lambda: rule.completed(number, merit, error), None)

    def _end_trial(self, number: int, end: TrialEnd, attrs: Mapping[str, Any] | None = None) -> None:
        """attrs: what the record keeps with the trial besides."""
        self.suggester.go_on(number)
        self._recorder.end(number, end, attrs or {})
        rule, failed = self.rule, end.failure is not None
        if rule is not None and end.state is not TrialState.COMPLETE:
            self._guarded(lambda: rule.ended(number, failed), None)
        if end.failure is None:
            self._succeeded = True
        else:
            self._failures.append(end.failure)
        if not self._succeeded:
            self._give_up()

    def _give_up(self) -> None:
        """End the launch when its first trials all failed; one that still trains well is waited for a while."""
        promising = self._paused or any(self._trials[number].latest is not None for number in self._live)
        if len(self._failures) >= FIRST_FAILURES * (3 if promising else 1):
            self.finish(End(EndReason.HOPELESS, common_cause(self._failures)))

    def _found_bug(self, problem: Exception) -> None:
        self.finish(End(EndReason.BUG, str(problem), problem))

    def _guarded(self, ask: Callable[[], T], otherwise: T) -> T:
        """A rule may come from another package: what it raises ends the launch, where Ray would crawl on."""
        try:
            return ask()
        except Exception as problem:
            self._found_bug(problem)
            return otherwise
