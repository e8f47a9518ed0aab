"""What one transaction writes to a record: many events at once, as rows of Optuna's own tables.

Optuna's storage would open a session, look up the trial and commit for every attribute; what any Optuna reads
afterwards is the same.
"""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from sctune.errors import StudyError


@dataclass
class Batch:
    """Events in their order, folded: of what is replaced only the latest is written; a trial's first end counts.

    over: numbers of trials that ended before, which take nothing more; the batch adds its own.
    """

    over: set[int]
    starts: list[FrozenTrial] = field(default_factory=list)
    attrs: dict[tuple[int, str], Any] = field(default_factory=dict)
    values: dict[tuple[int, int], float] = field(default_factory=dict)
    ends: dict[int, tuple[TrialState, float | None, datetime]] = field(default_factory=dict)
    study_attrs: dict[str, Any] = field(default_factory=dict)

    def set_attrs(self, number: int, attrs: Mapping[str, Any]) -> None:
        if number not in self.over:
            self.attrs.update({(number, key): value for key, value in attrs.items()})

    def report(self, number: int, epoch: int, value: float, attrs: Mapping[str, Any]) -> None:
        if number not in self.over:
            self.set_attrs(number, attrs)
            self.values[number, epoch] = value

    def finish(self, number: int, state: TrialState, value: float | None, attrs: Mapping[str, Any]) -> None:
        if number not in self.over:
            self.set_attrs(number, attrs)
            self.ends[number] = (state, value, datetime.now())
            self.over.add(number)


def write(storage: RDBStorage, study_id: int, trial_ids: dict[int, int], batch: Batch) -> dict[int, int]:
    """Write a batch in one transaction, all of it or nothing; gives number -> row id of the trials that it started.

    Written again (only the answer was lost), it changes nothing. Raises StorageInternalError for what may be tried
    again, StudyError where another driver has written to the study.
    """
    with _transaction(storage) as session:
        rows = _Rows(storage, session)
        started = _start(session, rows, study_id, trial_ids, batch.starts)
        ids = ChainMap(started, trial_ids)
        study_attrs = [_attr("study_id", study_id, key, value) for key, value in batch.study_attrs.items()]
        rows.put(models.StudySystemAttributeModel, ("study_id", "key"), study_attrs)
        attrs = [_attr("trial_id", ids[number], key, value) for (number, key), value in batch.attrs.items()]
        rows.put(models.TrialUserAttributeModel, ("trial_id", "key"), attrs)
        _values(rows, ids, batch)
        for number, (state, _, moment) in batch.ends.items():
            trial = session.get(models.TrialModel, ids[number])
            if trial is not None and not trial.state.is_finished():
                trial.state, trial.datetime_complete = state, moment
    return started


@contextmanager
def _transaction(storage: RDBStorage) -> Iterator[Session]:
    session = storage.scoped_session()
    try:
        yield session
        session.commit()
    except IntegrityError:
        session.rollback()
        raise
    except SQLAlchemyError as problem:
        session.rollback()
        raise StorageInternalError(str(problem)) from problem
    except BaseException:
        session.rollback()
        raise
    finally:
        session.close()


class _Rows:
    def __init__(self, storage: RDBStorage, session: Session) -> None:
        # the same words in both dialects; a record is kept in one of these two
        self._insert = postgresql.insert if storage.engine.name == "postgresql" else sqlite.insert
        self._session = session

    def put(self, model: Any, keys: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows, or replace those with the same keys."""
        if rows:
            statement = self._insert(model)
            new = {name: statement.excluded[name] for name in rows[0] if name not in keys}
            self._session.execute(statement.on_conflict_do_update(index_elements=keys, set_=new), rows)


def _start(
    session: Session, rows: _Rows, study_id: int, trial_ids: Mapping[int, int], starts: Sequence[FrozenTrial]
) -> dict[int, int]:
    if not starts:
        return {}
    model = models.TrialModel
    newest = max(trial_ids.values(), default=0)
    unknown = session.query(model).filter(model.study_id == study_id, model.trial_id > newest)
    found: dict[Any, Any] = {row.number: row for row in unknown}
    started: dict[int, int] = {}
    for frozen in starts:
        number = frozen.number
        known = started.get(number, trial_ids.get(number))
        row = found.get(number) if known is None else session.get(model, known)
        if row is None:
            free = len(trial_ids) + len(started)
            if number != free:
                raise StudyError(f"trial {number} became {free} in the record; another driver writes to it")
            started[number] = _insert_trial(session, rows, study_id, frozen)
        elif row.datetime_start != frozen.datetime_start:
            raise StudyError(f"the record holds another trial {number}; another driver writes to it")
        elif known is None:
            # an earlier try wrote it and only the answer was lost
            started[number] = int(row.trial_id)
    if not set(found) <= set(started):
        raise StudyError(
            f"the record holds another trial {min(set(found) - set(started))}; another driver writes to it"
        )
    return started


def _insert_trial(session: Session, rows: _Rows, study_id: int, frozen: FrozenTrial) -> int:
    """A running trial with its parameters and attributes; gives its row id."""
    trial = models.TrialModel(study_id=study_id, number=frozen.number, state=TrialState.RUNNING)
    trial.datetime_start = frozen.datetime_start
    session.add(trial)
    session.flush()
    trial_id = int(trial.trial_id)
    params = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": frozen.distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(frozen.distributions[name]),
        }
        for name, value in frozen.params.items()
    ]
    rows.put(models.TrialParamModel, ("trial_id", "param_name"), params)
    for model, attrs in (
        (models.TrialUserAttributeModel, frozen.user_attrs),
        (models.TrialSystemAttributeModel, without_pickles(frozen.system_attrs)),
    ):
        rows.put(model, ("trial_id", "key"), [_attr("trial_id", trial_id, key, value) for key, value in attrs.items()])
    return trial_id


def _values(rows: _Rows, ids: Mapping[int, int], batch: Batch) -> None:
    points = []
    for (number, epoch), reported in batch.values.items():
        point, finite = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(reported)
        row = {"trial_id": ids[number], "step": epoch}
        points.append({**row, "intermediate_value": point, "intermediate_value_type": finite})
    rows.put(models.TrialIntermediateValueModel, ("trial_id", "step"), points)
    finals = []
    for number, (_, value, _) in batch.ends.items():
        if value is not None:
            stored, kind = models.TrialValueModel.value_to_stored_repr(value)
            finals.append({"trial_id": ids[number], "objective": 0, "value": stored, "value_type": kind})
    rows.put(models.TrialValueModel, ("trial_id", "objective"), finals)


def _attr(owner: str, owner_id: int, key: str, value: Any) -> dict[str, Any]:
    return {owner: owner_id, "key": key, "value_json": json.dumps(value)}


def without_pickles(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's system attributes but for CMA-ES's, which hold a pickled optimizer."""
    return {key: value for key, value in attrs.items() if not key.startswith("cma:")}
