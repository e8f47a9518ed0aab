"""One driver per study: a file lock on this machine, an advisory lock in a shared database; both end with their holder.

Two machines have two study roots, so the file alone is not enough. A database lock ends with its connection; when the
server was restarted the driver takes it again, and knows by a number that grows with each launch whether another
driver ran meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from sctune.errors import StudyError
from sctune.search.study.database import (
    DRIVER_ATTR,
    engine_options,
    is_postgres,
    read_attrs,
    unreachable,
    write_attrs,
)
from sctune.search.study.process import driver_facts
from sctune.urls import complete

CHECK_S = 2.0
"""Seconds between looks at the database lock, which a restart of the server frees."""

BEAT_S = 10.0
"""Seconds between signs of life in the manifest, by which the time of a killed launch is counted."""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def holder_text(holder: dict[str, Any]) -> str:
    """Who runs a study, for people."""
    since = f" since {holder['since']}" if "since" in holder else ""
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'another host')}{since}"


def running_error(name: str, holder: dict[str, Any]) -> StudyError:
    return StudyError(f"study {name!r} is being run by {holder_text(holder)}; wait for it, or end that process")


@contextmanager
def file_lock(path: Path, refusal: Callable[[], StudyError]) -> Iterator[None]:
    """Held while the block runs; `refusal` is raised where another process holds it."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise refusal() from None
    except OSError as problem:
        raise StudyError(f"cannot lock {path}: {problem.strerror}") from None
    try:
        yield
    finally:
        lock.release()


_HOLDERS = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND ((classid::bigint << 32) | objid::bigint) = :key
"""


class DatabaseLock:
    """The advisory lock of one study in PostgreSQL, held by a connection of its own.

    fencing: 1 for the first launch of the study, and one more for each that follows.
    """

    def __init__(self, url: str, name: str, study_id: str) -> None:
        self.fencing = 0
        self._url = url
        self._name = name
        # PostgreSQL's lock keys are signed 64-bit numbers
        self._key = int.from_bytes(sha256(f"sctune:{study_id}".encode()).digest()[:8], "big", signed=True)
        full = complete(url)
        self._engine = create_engine(
            full, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=engine_options(full)["connect_args"]
        )
        self._connection: Connection | None = None

    def acquire(self) -> None:
        """Take the lock and write down who holds it; StudyError where another driver does, or without a database."""
        try:
            taken = self._try()
        except SQLAlchemyError as problem:
            raise unreachable(self._url, problem) from None
        try:
            holder = read_attrs(self._url, self._name).get(DRIVER_ATTR) or {}
            if not taken:
                raise running_error(self._name, holder)
            self.fencing = int(holder.get("fencing", 0)) + 1
            here = {**driver_facts(), "fencing": self.fencing}
            write_attrs(self._url, self._name, {DRIVER_ATTR: here})
        except BaseException:
            self.release()
            raise

    def lost(self) -> str | None:
        """Look at the lock, and take it again where the connection broke; a line when another driver got it.

        Where the database is away nothing is known yet: None, and the next look tells.
        """
        try:
            if self._connection is not None:
                self._connection.execute(text("SELECT 1"))
                return None
        except SQLAlchemyError:
            self._drop()
        try:
            taken = self._try()
            holder = read_attrs(self._url, self._name).get(DRIVER_ATTR) or {}
        except (SQLAlchemyError, StudyError):
            self._drop()
            return None
        if taken and holder.get("fencing") == self.fencing:
            return None
        if holder.get("fencing") == self.fencing:
            # the server has not noticed yet that our old connection is gone, or another driver is just starting
            self._drop()
            return None
        self.release()
        return f"study {self._name!r} is being run by {holder_text(holder)}, after this driver lost the database"

    def is_free(self) -> bool:
        """Whether nobody holds it at the moment; looks only, since taking it would refuse a driver that just starts."""
        try:
            with self._engine.connect() as connection:
                return not connection.execute(text(_HOLDERS), {"key": self._key}).scalar()
        except SQLAlchemyError as problem:
            raise unreachable(self._url, problem) from None
        finally:
            self.release()

    def release(self) -> None:
        self._drop()
        self._engine.dispose()

    def _try(self) -> bool:
        self._connection = self._engine.connect()
        return bool(self._connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key}).scalar())

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


@contextmanager
def database_lock(url: str, name: str, study_id: str) -> Iterator[DatabaseLock | None]:
    """The lock that belongs to a shared record: advisory in PostgreSQL, a file beside one in SQLite (None)."""
    if is_postgres(url):
        lock = DatabaseLock(url, name, study_id)
        lock.acquire()
        try:
            yield lock
        finally:
            lock.release()
        return

    def refusal() -> StudyError:
        return running_error(name, read_attrs(url, name).get(DRIVER_ATTR) or {})

    with file_lock(_lock_beside(url, study_id), refusal):
        write_attrs(url, name, {DRIVER_ATTR: driver_facts()})
        yield None


def is_free(path: Path, url: str | None, name: str, study_id: str) -> bool:
    """Whether nobody holds a study: the lock that belongs to its shared record, else the file lock at `path`."""
    if url is not None and is_postgres(url):
        return DatabaseLock(url, name, study_id).is_free()
    place = path if url is None else _lock_beside(url, study_id)
    try:
        with FileLock(place, timeout=0):
            return True
    except Timeout:
        return False
    except OSError as problem:
        raise StudyError(f"cannot look at the lock {place}: {problem.strerror}") from None


def _lock_beside(url: str, study_id: str) -> Path:
    database = Path(url.removeprefix("sqlite:///"))
    return database.with_name(f"{database.name}.{study_id}.lock")


@contextmanager
def watching(lock: DatabaseLock | None, beat: Callable[[], None], on_lost: Callable[[str], None]) -> Iterator[None]:
    """While the block runs a thread looks after the lock, calls `beat` now and then, and `on_lost` once if it is lost.

    beat must not raise.
    """
    ended = threading.Event()

    def work() -> None:
        looks = 0
        while not ended.wait(CHECK_S):
            looks += 1
            trouble = lock.lost() if lock is not None else None
            if trouble is not None and not ended.is_set():
                on_lost(trouble)
                return
            if looks % round(BEAT_S / CHECK_S) == 0:
                beat()

    thread = threading.Thread(target=work, name="sctune-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
