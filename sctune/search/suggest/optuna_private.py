"""Every part of Optuna that its documentation does not promise; tests/test_private_parts.py names what an update took.

Optuna is pinned to one minor version for them. `models` are the tables of its storage, written by study/record_sql.py.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.storages._rdb import models as models
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

FIXED = "fixed_params"
"""System attribute of a trial that was given its point, or a part of one."""

CMA_PICKLE = "cma:optimizer"
"""System attributes that begin so hold the pieces of the pickled optimizer of its CmaEsSampler."""

Choose = Callable[[Sequence[FrozenTrial]], Sequence[FrozenTrial]]


def trial_id(trial: FrozenTrial | Trial) -> int:
    """The storage's own id of a trial, not its number."""
    return trial._trial_id


class SuggesterStorage(InMemoryStorage):
    """Optuna's storage in memory, which can also forget its latest trial; Optuna has no way to delete one.

    horizon: trials from this number on look unfinished to a sampler; None: every trial looks as it is. paused: numbers
    of running trials that look pruned, with their latest value. choose: gives those of all trials that are there for
    whoever asks; choice: what it gave last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.horizon: int | None = None
        self.paused: set[int] = set()
        self.choose: Choose | None = None
        self.choice: Sequence[FrozenTrial] | None = None

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if (self.horizon is None and not self.paused and self.choose is None) or states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        if self.choose is None:
            trials: Sequence[FrozenTrial] = self._all_as_shown(study_id, deepcopy)
        else:
            if self.choice is None:
                self.choice = self.choose(self._all_as_shown(study_id, deepcopy))
            trials = self.choice
        return [trial for trial in trials if states is None or trial.state in states]

    def _all_as_shown(self, study_id: int, deepcopy: bool) -> list[FrozenTrial]:
        trials = super().get_all_trials(study_id, deepcopy)
        late = len(trials) if self.horizon is None else max(self.horizon, 0)
        # a trial's place is its number
        for number in {*self.paused, *range(late, len(trials))}:
            trials[number] = self._as_shown(trials[number])
        return trials

    def _as_shown(self, trial: FrozenTrial) -> FrozenTrial:
        if self.horizon is not None and trial.number >= self.horizon:
            waits = trial.state is TrialState.WAITING
            return trial if waits else _in_state(trial, TrialState.RUNNING, {}, None)
        if trial.number in self.paused and trial.intermediate_values:
            latest = trial.intermediate_values[max(trial.intermediate_values)]
            return _in_state(trial, TrialState.PRUNED, trial.intermediate_values, latest)
        return trial

    def forget_latest(self, study_id: int) -> None:
        """As if the latest trial had never been asked for: its number and id are given again."""
        with self._lock:
            trials = self._studies[study_id].trials
            del self._trial_id_to_study_id_and_number[trials.pop()._trial_id]
            self._max_trial_id -= 1
            self._prev_waiting_trial_number[study_id] = min(self._prev_waiting_trial_number[study_id], len(trials))


@contextmanager
def showing(study: Study, choose: Choose) -> Iterator[None]:
    """While it lasts only chosen trials of the study are there. They are chosen once, until `forget_choice`."""
    storage = study._storage
    if not isinstance(storage, SuggesterStorage):
        yield
        return
    storage.choose = choose
    try:
        yield
    finally:
        storage.choose = None


def forget_choice(study: Study) -> None:
    """Trials have ended since, or begun: `showing` chooses anew."""
    if isinstance(study._storage, SuggesterStorage):
        study._storage.choice = None


def _in_state(
    trial: FrozenTrial, state: TrialState, intermediate: dict[int, float], value: float | None
) -> FrozenTrial:
    return FrozenTrial(
        number=trial.number,
        trial_id=trial._trial_id,
        state=state,
        value=value,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_start if state.is_finished() else None,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
        intermediate_values=intermediate,
    )


class _SecondTryError(Exception):
    pass


class OneTryStorage(RDBStorage):
    """Optuna creates a trial again when the server's answer was lost, and so makes two; here the caller decides.

    tests/search/test_database.py cuts the wire at that very moment.
    """

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        self._tries = 0
        try:
            return super().create_new_trial(study_id, template_trial)
        except _SecondTryError:
            raise StorageInternalError("the answer of the database was lost") from None

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Any) -> Any:
        self._tries += 1
        if self._tries > 1:
            raise _SecondTryError
        return super()._get_prepared_new_trial(study_id, template_trial, session)
