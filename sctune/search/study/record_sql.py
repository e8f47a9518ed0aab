"""The rows of a record: many writes in one transaction, into the tables of Optuna's own storage.

Optuna commits every attribute by itself, 5 to 50 ms each on SQLite. What is written here in one piece is read by
any Optuna as if it had been written through its storage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, Table, bindparam, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from sctune.errors import FencedError, StudyError
from sctune.search.study.database import DRIVER_ATTR
from sctune.search.study.lock import holder_text
from sctune.search.suggest.cma_state import stored_attrs
from sctune.search.suggest.optuna_private import models

TRIALS: Table = models.TrialModel.__table__
STUDIES: Table = models.StudyModel.__table__

KEYS = {
    models.TrialUserAttributeModel: ("trial_id", "key"),
    models.TrialSystemAttributeModel: ("trial_id", "key"),
    models.TrialParamModel: ("trial_id", "param_name"),
    models.TrialIntermediateValueModel: ("trial_id", "step"),
    models.TrialValueModel: ("trial_id", "objective"),
    models.StudySystemAttributeModel: ("study_id", "key"),
}
"""What makes a row of each table one of its kind; writing it again replaces the rest."""


@dataclass(frozen=True)
class Start:
    """A new running trial with its parameters and attributes."""

    frozen: FrozenTrial


@dataclass(frozen=True)
class Attrs:
    """User attributes of a trial (JSON values)."""

    number: int
    attrs: Mapping[str, Any]


@dataclass(frozen=True)
class EpochRow:
    """An epoch's value with its attributes."""

    number: int
    epoch: int
    value: float
    attrs: Mapping[str, Any]


@dataclass(frozen=True)
class Finish:
    """A trial's end; moment: local time without a zone, as Optuna counts."""

    number: int
    state: TrialState
    value: float | None
    attrs: Mapping[str, Any]
    moment: datetime


@dataclass(frozen=True)
class StudyAttrs:
    """System attributes of the study."""

    attrs: Mapping[str, Any]


Write: TypeAlias = Start | Attrs | EpochRow | Finish | StudyAttrs


@dataclass
class _Batch:
    """What a batch comes to: the last word on each attribute and epoch, the first on each end. By trial number."""

    starts: list[FrozenTrial] = field(default_factory=list)
    attrs: dict[tuple[int, str], Any] = field(default_factory=dict)
    values: dict[tuple[int, int], float] = field(default_factory=dict)
    ends: dict[int, Finish] = field(default_factory=dict)
    study_attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def numbers(self) -> set[int]:
        return {number for number, _ in [*self.attrs, *self.values]} | set(self.ends)

    def add(self, write: Write) -> None:
        if isinstance(write, StudyAttrs):
            self.study_attrs.update(write.attrs)
        elif isinstance(write, Start):
            self.starts.append(write.frozen)
        elif write.number not in self.ends:
            self.attrs.update({(write.number, key): value for key, value in write.attrs.items()})
            if isinstance(write, EpochRow):
                self.values[write.number, write.epoch] = write.value
            elif isinstance(write, Finish):
                self.ends[write.number] = write


class RecordSql:
    """Writes batches of one study, all or nothing each. What was written before changes nothing.

    Trials that have ended stay as they are. ids: trial number -> the database's own id, of the trials known so far.
    fencing: this driver's number; once a later one is in the database nothing more is written. None: no other can be.
    """

    def __init__(self, engine: Engine, study_id: int, fencing: int | None = None) -> None:
        self.ids: dict[int, int] = {}
        self.fencing = fencing
        self._engine = engine
        self._study_id = study_id
        self._upserts = {model: _upsert(engine, model, keys) for model, keys in KEYS.items()}

    def write(self, batch: Sequence[Write]) -> None:
        """One transaction. Raises SQLAlchemyError of the database, StudyError when somebody else writes too.

        FencedError where another driver has the study by now.
        """
        rows = _Batch()
        for write in batch:
            rows.add(write)
        with self._engine.begin() as connection:
            self._check_study(connection)
            ids = self.ids | self._start(connection, rows.starts)
            ended = self._ended(connection, {ids[number] for number in rows.numbers})
            self._put(connection, models.StudySystemAttributeModel, _study_rows(self._study_id, rows.study_attrs))
            self._put(
                connection,
                models.TrialUserAttributeModel,
                [
                    {"trial_id": ids[number], "key": key, "value_json": json.dumps(value)}
                    for (number, key), value in rows.attrs.items()
                    if ids[number] not in ended
                ],
            )
            self._put(
                connection,
                models.TrialIntermediateValueModel,
                [
                    _value_row(ids[number], epoch, value)
                    for (number, epoch), value in rows.values.items()
                    if ids[number] not in ended
                ],
            )
            self._finish(
                connection, {ids[number]: end for number, end in rows.ends.items() if ids[number] not in ended}
            )
        self.ids = ids

    def _check_study(self, connection: Connection) -> None:
        # locks the study's row where the database can: nobody else numbers trials meanwhile
        row = select(STUDIES.c.study_id).where(STUDIES.c.study_id == self._study_id).with_for_update()
        if connection.execute(row).first() is None:
            raise StudyError("the study was deleted from the database while it ran")
        if self.fencing is not None:
            self._check_fence(connection, self.fencing)

    def _check_fence(self, connection: Connection, fencing: int) -> None:
        model = models.StudyUserAttributeModel
        # locks the row: a driver that takes the study over waits for this transaction, and then reads what it wrote
        row = select(model.value_json).where(model.study_id == self._study_id, model.key == DRIVER_ATTR)
        stored = connection.execute(row.with_for_update()).scalar_one_or_none()
        holder = json.loads(stored) if stored else {}
        if holder.get("fencing") != fencing:
            raise FencedError(f"it is being run by {holder_text(holder)}, after this driver lost the database")

    def _start(self, connection: Connection, starts: Sequence[FrozenTrial]) -> dict[int, int]:
        if not starts:
            return {}
        mine = TRIALS.c.study_id == self._study_id
        latest = select(TRIALS.c.number).where(mine).order_by(TRIALS.c.trial_id.desc()).limit(1)
        last = connection.execute(latest).scalar_one_or_none()
        following = 0 if last is None else last + 1
        ids: dict[int, int] = {}
        for frozen in starts:
            started = _utc(frozen.datetime_start)
            if frozen.number > following:
                raise StudyError(f"trial {frozen.number} became {following} in the record; another driver writes to it")
            if frozen.number < following:
                row = connection.execute(
                    select(TRIALS.c.trial_id, TRIALS.c.datetime_start).where(mine, TRIALS.c.number == frozen.number)
                ).one()
                # an earlier try wrote it and only the answer was lost
                if row.datetime_start != started:
                    raise StudyError(f"the record holds another trial {frozen.number}; another driver writes to it")
                ids[frozen.number] = row.trial_id
                continue
            ids[frozen.number] = self._insert(connection, frozen, started)
            following += 1
        return ids

    def _insert(self, connection: Connection, frozen: FrozenTrial, started: datetime | None) -> int:
        trial = {"number": frozen.number, "study_id": self._study_id, "state": TrialState.RUNNING}
        statement = insert(TRIALS).values(**trial, datetime_start=started).returning(TRIALS.c.trial_id)
        trial_id = int(connection.execute(statement).scalar_one())
        params = []
        for name, value in frozen.params.items():
            distribution = frozen.distributions[name]
            params.append(
                {
                    "trial_id": trial_id,
                    "param_name": name,
                    "param_value": distribution.to_internal_repr(value),
                    "distribution_json": distribution_to_json(distribution),
                }
            )
        self._put(connection, models.TrialParamModel, params)
        for model, attrs in (
            (models.TrialUserAttributeModel, frozen.user_attrs),
            (models.TrialSystemAttributeModel, stored_attrs(frozen.system_attrs)),
        ):
            rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(attrs[key])} for key in attrs]
            self._put(connection, model, rows)
        return trial_id

    def _ended(self, connection: Connection, ids: set[int]) -> set[int]:
        if not ids:
            return set()
        found = connection.execute(select(TRIALS.c.trial_id, TRIALS.c.state).where(TRIALS.c.trial_id.in_(ids)))
        return {row.trial_id for row in found if row.state.is_finished()}

    def _finish(self, connection: Connection, ends: Mapping[int, Finish]) -> None:
        if not ends:
            return
        values = []
        for trial_id, end in ends.items():
            if end.value is not None:
                stored, kind = models.TrialValueModel.value_to_stored_repr(end.value)
                values.append({"trial_id": trial_id, "objective": 0, "value": stored, "value_type": kind})
        self._put(connection, models.TrialValueModel, values)
        states = [
            {"ended_id": trial_id, "state": end.state, "datetime_complete": _utc(end.moment)}
            for trial_id, end in ends.items()
        ]
        connection.execute(update(TRIALS).where(TRIALS.c.trial_id == bindparam("ended_id")), states)

    def _put(self, connection: Connection, model: Any, rows: list[dict[str, Any]]) -> None:
        if rows:
            connection.execute(self._upserts[model], rows)


def _upsert(engine: Engine, model: Any, keys: Sequence[str]) -> Any:
    # the two databases that sctune supports have the same words for it
    dialect = postgresql if engine.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(model)
    others = [column.name for column in model.__table__.columns if not column.primary_key and column.name not in keys]
    return statement.on_conflict_do_update(
        index_elements=list(keys), set_={name: statement.excluded[name] for name in others}
    )


def _study_rows(study_id: int, attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]


def _value_row(trial_id: int, epoch: int, value: float) -> dict[str, Any]:
    stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    return {"trial_id": trial_id, "step": epoch, "intermediate_value": stored, "intermediate_value_type": kind}


def _utc(moment: datetime | None) -> datetime | None:
    """Optuna stores UTC without a zone, and shows local time without one."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)
