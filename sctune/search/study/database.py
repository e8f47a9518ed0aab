"""The database of a record: SQLite or PostgreSQL by URL, opened with its password, and what a study keeps there.

Connections notice a dead server or a dead client within half a minute, and a server that was restarted costs nothing.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from sctune.errors import StudyError
from sctune.urls import STORAGE_VARIABLE, accept, complete, missing_driver, without_secrets, written_out

DATABASE_ERRORS = (StorageInternalError, SQLAlchemyError, ImportError, RuntimeError)
RETRY_S = 100.0
"""How long a database may be away before a write or read gives up; a restart or a failover takes less."""

MANIFEST_ATTR = "sctune:manifest"
DRIVER_ATTR = "sctune:driver"

_KEEPALIVES = "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"

Result = TypeVar("Result")


class NoRecordError(StudyError):
    """The database answers, and holds no study of this name."""


class _SecondTryError(Exception):
    pass


class OneTryStorage(RDBStorage):
    """Optuna creates a trial again when the server's answer was lost, and so makes two; here the caller decides.

    A private method of Optuna is wrapped: tests/search/test_database.py cuts the wire at that very moment.
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


def storage_url(url: str, option: str = "--storage") -> str:
    """The bare, absolute form of a URL that the user gave; StudyError for a database that sctune does not support."""
    bare = accept(url, option)
    if bare.startswith("sqlite:///"):
        return "sqlite:///" + str(Path(bare.removeprefix("sqlite:///")).expanduser().absolute())
    if not is_postgres(bare):
        raise StudyError(
            f"{option} {without_secrets(bare, shown=True)}: the record can be kept in SQLite "
            "(sqlite:////absolute/file.db) or PostgreSQL (postgresql://user@host/database)"
        )
    return bare


def is_postgres(url: str) -> bool:
    return written_out(url).startswith("postgresql")


def open_database(url: str, *, known: bool = False) -> RDBStorage:
    """Optuna's storage at a bare URL, with its password; known: the tables are there, so do not look.

    Raises StudyError with one line when a driver is missing; what Optuna and SQLAlchemy raise are DATABASE_ERRORS.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    full = complete(url)
    missing = missing_driver(full)
    if missing is not None:
        raise StudyError(missing)
    return OneTryStorage(
        full, engine_kwargs=engine_options(full), skip_compatibility_check=known, skip_table_creation=known
    )


def engine_options(url: str) -> dict[str, Any]:
    """Keyword arguments of SQLAlchemy's create_engine."""
    # a server restarted in mid-run costs one failed call without the ping
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("sqlite"):
        # `status` may read while the driver writes
        options["connect_args"] = {"timeout": 30}
    elif is_postgres(url):
        given = make_url(url).query.get("options", "")
        options["connect_args"] = {
            "connect_timeout": 10,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # the server's side: it would else keep the lock of a host that vanished for two hours
            "options": f"{given} {_KEEPALIVES}".strip(),
        }
    return options


def with_retries(job: Callable[[], Result], limit_s: float = RETRY_S) -> Result:
    """The job's result; a database that is away is asked again after 0.5, 1, 2 ... 10 s.

    The job may have been done although it failed (only the answer was lost), so it must bear a repetition.
    """
    deadline, pause = time.monotonic() + limit_s, 0.5
    while True:
        try:
            return job()
        except (StorageInternalError, OperationalError):
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 10.0)


def read_attrs(url: str, name: str) -> dict[str, Any]:
    """What a study keeps with its record: attribute -> JSON value. Raises StudyError at once where there is none."""
    check_is_record(url)
    return _in_database(url, name, lambda storage, study: dict(storage.get_study_user_attrs(study)), 0.0)


def write_attrs(url: str, name: str, attrs: Mapping[str, Any], limit_s: float = RETRY_S) -> None:
    """Set attributes of a study in its record, with tries for `limit_s` seconds. Raises StudyError."""

    def write(storage: RDBStorage, study: int) -> None:
        for key, value in attrs.items():
            storage.set_study_user_attr(study, key, value)

    _in_database(url, name, write, limit_s)


def stored_manifests(url: str) -> dict[str, Any]:
    """Name -> manifest (JSON) of every study of sctune in a database. Raises StudyError when it cannot be read."""
    check_is_record(url)
    try:
        storage = open_database(url)
        try:
            studies = with_retries(storage.get_all_studies, 5.0)
        finally:
            close_database(storage)
    except DATABASE_ERRORS as problem:
        raise unreachable(url, problem) from None
    found = {study.study_name: study.user_attrs.get(MANIFEST_ATTR) for study in studies}
    return {name: found[name] for name in sorted(found) if found[name] is not None}


def _in_database(url: str, name: str, work: Callable[[RDBStorage, int], Result], limit_s: float = RETRY_S) -> Result:
    def opened() -> Result:
        storage = open_database(url, known=True)
        try:
            return work(storage, storage.get_study_id_from_name(name))
        finally:
            close_database(storage)

    try:
        return with_retries(opened, limit_s)
    except KeyError:
        raise NoRecordError(f"the record at {without_secrets(url, shown=True)} holds no study {name!r}") from None
    except DATABASE_ERRORS as problem:
        raise unreachable(url, problem) from None


def close_database(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


def check_is_record(url: str) -> None:
    """Raises NoRecordError where an SQLite file is missing or empty, StudyError where it is something else.

    Opening it would write to it.
    """
    path = _sqlite_file(url)
    if path is None:
        return
    if not path.is_file():
        raise NoRecordError(f"there is no record at {path}")
    try:
        empty = not _has_studies(path)
    except sqlite3.OperationalError:
        # locked, or left by a killed writer: opening it for writing mends that
        return
    except sqlite3.DatabaseError as problem:
        raise StudyError(f"{path} is no record: {problem}; name the file that the study was begun with") from None
    if empty:
        raise NoRecordError(f"{path} is no record: it holds no study; name the file that the study was begun with")


def _sqlite_file(url: str) -> Path | None:
    try:
        parts = make_url(url)
    except ArgumentError:  # told where it is opened
        return None
    plain = parts.get_backend_name() == "sqlite" and parts.database and parts.database != ":memory:"
    return Path(str(parts.database)) if plain else None


def _has_studies(path: Path) -> bool:
    """Whether the tables of a record are in an SQLite file, which is only read."""
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as base:
        return base.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchone() is not None


def _can_be_made(url: str) -> bool:
    """Whether an SQLite file has no tables yet, and could get some."""
    path = _sqlite_file(url)
    if path is None:
        return False
    try:
        return os.access(path if path.exists() else path.parent, os.W_OK) and not (path.exists() and _has_studies(path))
    except sqlite3.Error:
        return False


def check_free(url: str, name: str) -> None:
    """Raises StudyError when the database cannot be reached, or holds a study of this name. Writes nothing."""
    if _can_be_made(url):
        return
    try:
        if not _has_tables(url):
            return
        storage = open_database(url)
        known = [study.study_name for study in storage.get_all_studies()]
        close_database(storage)
    except DATABASE_ERRORS as problem:
        raise unreachable(url, problem) from None
    if name in known:
        raise taken(name)


def _has_tables(url: str) -> bool:
    """Whether the database holds Optuna's tables, which opening it would make."""
    full = complete(url)
    file = Path(full.removeprefix("sqlite:///"))
    if full.startswith("sqlite:///") and not file.exists():
        check_place(file)
        return False
    missing = missing_driver(full)
    if missing is not None:
        raise StudyError(missing)
    engine = create_engine(full, **engine_options(full))
    try:
        return bool(inspect(engine).has_table("studies"))
    finally:
        engine.dispose()


def check_place(file: Path) -> None:
    """Raises StudyError where a file cannot be made there; makes nothing."""
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK):
        raise StudyError(f"cannot open the record at {file}: {file.parent} is no folder that can be written to")


def unreachable(url: str, problem: BaseException) -> StudyError:
    """The error of a database that cannot be used, in one line and without its password."""
    reason = str(problem.__cause__ or problem).strip().splitlines()[0]
    if "password" in reason or "authentication" in reason:
        reason += f"; give the password by PGPASSWORD, ~/.pgpass, or a URL in {STORAGE_VARIABLE} or --storage"
    return StudyError(f"cannot open the record at {without_secrets(url, shown=True)}: {reason}")


def taken(name: str) -> StudyError:
    return StudyError(f"the database holds a study {name!r} already; choose another --name")
