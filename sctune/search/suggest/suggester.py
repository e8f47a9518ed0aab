"""New configurations: an Optuna study in memory that proposes, and never the same point twice."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from sctune.metrics.objective import AUROC, Objective
from sctune.search.space.definition import Space, Values
from sctune.search.suggest.cma_state import restored_attrs
from sctune.search.suggest.optuna_private import SuggesterStorage, trial_id
from sctune.search.suggest.prior_sampler import START, UNTRIED, Proposal, WithPriors

MAX_ASKS = 20
"""Proposals of the sampler that may repeat a point before an untried one is taken instead."""

MAX_RANDOM_ASKS = 100
MANY = 1_000_000
"""More trials than any machine runs at a time."""
MAX_LISTED = 10_000
"""Finite spaces up to this size give a random untried point, larger ones the first."""


class Suggester:
    """Asks the sampler, rejects repeated points without leaving a trace, and keeps its view of the trials.

    Numbers are contiguous: a rejected proposal gives its number back. The sampler object stays, so that its random
    numbers move on; the study's attributes stay, since QMC counts there.
    """

    def __init__(
        self,
        space: Space,
        sampler: BaseSampler,
        seed: int,
        trials: Sequence[FrozenTrial] = (),
        study_attrs: Mapping[str, Any] | None = None,
        *,
        first: Sequence[tuple[str, Values]] = (),
        in_order: bool = False,
        taken: Sequence[int] = (),
        objective: Objective = AUROC,
        behind: int | None = None,
    ) -> None:
        """trials: of earlier launches, in order of their numbers; first: who believes in it, and a point, tried
        before the space's own start points; in_order: try all points as declared (a grid).

        taken: numbers between theirs that are no trials of the study, and are not given again. behind: a proposal knows
        the results of the trials that are more than so many numbers before it, which have all ended by then, and of no
        others; None: of all that have ended.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._sampler = sampler
        self._direction = StudyDirection[objective.direction.upper()]
        self._seed = seed
        self._in_order = in_order
        self._behind = behind
        self._size = space.size()
        self._unfinished = {trial.number for trial in trials if not trial.state.is_finished()}
        self._params = {trial.number: space.decode(trial.params) for trial in trials}
        self._seen = {space.key(values) for values in self._params.values()}
        # each earlier trial took one at most, while there were some; one that is tried again draws on for its number
        self._start = deque([*first, *((START, point) for point in space.start)][len(trials) :])
        # what was passed was tried, and stays so: a proposal late in a large grid costs what the first one did
        self._ahead = (point for point in space.points() if space.key(point) not in self._seen)
        self._listed: dict[str, Values] | None = None
        self._proposals: dict[int, Proposal] = {}
        self._study_attrs = dict(study_attrs or {})
        blanks = [_blank(number) for number in taken]
        self._fill(sorted([*map(_bare, trials), *blanks], key=lambda trial: trial.number))

    @property
    def n_trials(self) -> int:
        return len(self._params)

    @property
    def n_untried(self) -> int | None:
        """Points of the space that are left; None: they have no number."""
        return None if self._size is None else max(self._size - len(self._seen), 0)

    @property
    def sampler(self) -> BaseSampler:
        return self._sampler

    def known(self) -> list[FrozenTrial]:
        """The trials that the next proposal may know, in order of their numbers; with `behind` all have ended."""
        return [
            trial
            for trial in self.trials()
            if trial.number in self._params
            and (self._behind is None or trial.number < self._next_number - self._behind)
            and (trial.state.is_finished() or trial.number in self._storage.paused)
        ]

    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def params(self, number: int) -> Values:
        return dict(self._params[number])

    def ask(self) -> FrozenTrial | None:
        """A running trial with an untried point, or None when there is none left.

        First the start points (all points in order for a grid), then the sampler, then any untried point. Not before
        `may_ask`.
        """
        self._storage.horizon = None if self._behind is None else self._next_number - self._behind
        try:
            return self._ask()
        finally:
            self._storage.horizon = None

    @property
    def may_ask(self) -> bool:
        """Whether all that the next proposal may know has ended."""
        return self._behind is None or self._window > 0

    @property
    def room(self) -> int:
        """How many proposals may be made now, one after the other; MANY: no order holds them back."""
        untried = self.n_untried
        window = MANY if self._behind is None else max(self._window, 0)
        return window if untried is None else min(window, untried)

    @property
    def _window(self) -> int:
        oldest = min(self._unfinished, default=self._next_number)
        return oldest + (self._behind or 0) + 1 - self._next_number

    def _ask(self) -> FrozenTrial | None:
        if self._size is not None and len(self._seen) >= self._size:
            return None
        while self._start:
            source, point = self._start.popleft()
            trial = self._try(point, source=source)
            if trial is not None:
                return trial
        if self._in_order:
            return self._try_untried()
        for _ in range(MAX_ASKS):
            trial = self._try(None)
            if trial is not None:
                return trial
        return self._try_untried()

    def proposal(self, number: int) -> Proposal | None:
        """Who proposed a trial of this launch; None in a study without priors."""
        return self._proposals.get(number)

    def changed_study_attrs(self) -> dict[str, Any]:
        """The study's system attributes that the sampler has set since the last call."""
        attrs = self._storage.get_study_system_attrs(self._study_id)
        changed = {key: value for key, value in attrs.items() if self._study_attrs.get(key) != value}
        self._study_attrs.update(changed)
        return changed

    def report(self, number: int, epoch: int, value: float) -> None:
        """Record an intermediate value of a running trial; the same epoch again replaces it."""
        self._storage.set_trial_intermediate_value(self._id(number), epoch, value)

    def value(self, number: int, epoch: int) -> float:
        return self._storage.get_trial(self._id(number)).intermediate_values[epoch]

    def pause(self, number: int) -> None:
        """A trial pauses: until it goes on, a sampler takes it for one that was stopped, with its latest value."""
        self._storage.paused.add(number)

    def go_on(self, number: int) -> None:
        """It does not pause any more; nothing for one that never did."""
        self._storage.paused.discard(number)

    def tell(self, number: int, state: TrialState, value: float | None) -> None:
        """End a running trial. value: None for FAIL."""
        trial = self._storage.get_trial(self._id(number))
        values = None if value is None else [value]
        # study.tell() insists on the highest epoch's value for PRUNED; after a resume it may be of another attempt
        self._sampler.after_trial(self._study, trial, state, values)
        self._storage.set_trial_state_values(trial_id(trial), state, values)
        self._unfinished.discard(number)

    def _try(
        self, point: Values | None, sampler: BaseSampler | None = None, source: str = UNTRIED
    ) -> FrozenTrial | None:
        """One proposal: of the sampler, or (a part of) a given point. None when the point was tried before.

        source: who proposes, where it is not the study's sampler.
        """
        if point is not None:
            self._study.enqueue_trial(self._space.encode(point))
        self._study.sampler = sampler or self._sampler
        trial: Trial = self._study.ask()
        values = self._space.suggest(trial)
        self._study.sampler = self._sampler
        key = self._space.key(values)
        if key in self._seen:
            self._storage.forget_latest(self._study_id)
            return None
        self._seen.add(key)
        self._params[trial.number] = values
        self._unfinished.add(trial.number)
        self._next_number = trial.number + 1
        if isinstance(self._sampler, WithPriors):
            made = self._sampler.proposal
            own = point is None and sampler is None
            self._proposals[trial.number] = made if own else made.model_copy(update={"source": source})
        return self._storage.get_trial(trial_id(trial))

    def _try_untried(self) -> FrozenTrial | None:
        """Any point that was not tried: in declared order for a grid, at random otherwise."""
        if self._size is None:
            random = RandomSampler(seed=self._draw_seed())
            tries = (self._try(None, random) for _ in range(MAX_RANDOM_ASKS))
            return next((trial for trial in tries if trial is not None), None)
        point = next(self._ahead, None) if self._in_order or self._size > MAX_LISTED else self._at_random()
        return None if point is None else self._try(point)

    def _at_random(self) -> Values | None:
        if self._listed is None:
            self._listed = {self._space.key(point): point for point in self._space.points()}
        for key in self._listed.keys() & self._seen:
            del self._listed[key]
        if not self._listed:
            return None
        drawn = self._draw_seed() % len(self._listed)
        return next(itertools.islice(self._listed.values(), drawn, None))

    def _draw_seed(self) -> int:
        return int(np.random.SeedSequence([self._seed, self.n_trials, 1]).generate_state(1)[0])

    def _fill(self, trials: Sequence[FrozenTrial]) -> None:
        self._storage = SuggesterStorage()
        # in a fresh storage ids equal numbers; NSGA-II stores its parents by id
        self._study = optuna.create_study(storage=self._storage, sampler=self._sampler, direction=self._direction)
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        for key, value in self._study_attrs.items():
            self._storage.set_study_system_attr(self._study_id, key, value)
        for trial in trials:
            self._storage.create_new_trial(self._study_id, trial)
        self._next_number = len(trials)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def _blank(number: int) -> FrozenTrial:
    """What stands for a number that another program took: samplers learn nothing from it."""
    trial = optuna.trial.create_trial(state=TrialState.FAIL)
    trial.number = number
    return trial


def _bare(trial: FrozenTrial) -> FrozenTrial:
    """A stored trial without its reports, which samplers do not read."""
    return FrozenTrial(
        number=trial.number,
        trial_id=trial_id(trial),
        state=trial.state,
        value=trial.value,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={},
        system_attrs=restored_attrs(trial.system_attrs),
        intermediate_values=trial.intermediate_values,
    )
