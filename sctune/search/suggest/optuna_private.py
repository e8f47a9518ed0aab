"""Every part of Optuna that its documentation does not promise; tests/test_private_parts.py names what an update took.

Optuna is pinned to one minor version for them. `models` are the tables of its storage, written by study/record_sql.py.
"""

from __future__ import annotations

from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.storages._rdb import models as models
from optuna.trial import FrozenTrial, Trial

CMA_PICKLE = "cma:optimizer"
"""System attributes that begin so hold the pieces of the pickled optimizer of its CmaEsSampler."""


def trial_id(trial: FrozenTrial | Trial) -> int:
    """The storage's own id of a trial, not its number."""
    return trial._trial_id


class SuggesterStorage(InMemoryStorage):
    """Optuna's storage in memory, which can also forget its latest trial; Optuna has no way to delete one."""

    def forget_latest(self, study_id: int) -> None:
        """As if the latest trial had never been asked for: its number and id are given again."""
        with self._lock:
            trials = self._studies[study_id].trials
            del self._trial_id_to_study_id_and_number[trials.pop()._trial_id]
            self._max_trial_id -= 1
            self._prev_waiting_trial_number[study_id] = min(self._prev_waiting_trial_number[study_id], len(trials))


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
