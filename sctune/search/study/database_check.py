"""Whether a database can keep the record of a study: it is reached, takes what is written, and its locks exclude."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from sctune.errors import StudyError
from sctune.search.study.database import check_place, engine_options, is_postgres, unreachable
from sctune.urls import complete, missing_driver, without_secrets

_TABLES = """
SELECT c.relname, bool_and(has_table_privilege(c.oid, p.name)) AS allowed
FROM pg_class c CROSS JOIN (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS p(name)
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
AND c.relname IN ('studies', 'trials', 'study_user_attributes', 'trial_user_attributes', 'trial_params')
GROUP BY c.relname ORDER BY c.relname
"""


def check_database(url: str) -> str:
    """Look at a database by its bare URL; one line about it. Writes nothing.

    Raises StudyError, with the way out, where it is not reached, is a standby, takes no record, or shares connections
    between clients, so that the lock of a study would not keep a second driver out.
    """
    shown = without_secrets(url, shown=True)
    if not is_postgres(url):
        return _check_file(Path(url.removeprefix("sqlite:///")))
    full = complete(url)
    missing = missing_driver(full)
    if missing is not None:
        raise StudyError(missing)
    try:
        with _connection(full) as first, _connection(full) as second:
            _check_privileges(first, shown)
            _check_lock(first, second, shown)
            version = first.execute(text("SHOW server_version")).scalar()
    except SQLAlchemyError as problem:
        raise unreachable(url, problem) from None
    return f"PostgreSQL {str(version).split()[0]}, lock and privileges"


def _check_file(file: Path) -> str:
    if not file.exists():
        check_place(file)
    elif not os.access(file, os.W_OK):
        raise StudyError(f"cannot write to the record {file}; make it writable, or give another --storage")
    return f"SQLite in {file.parent}"


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    engine = create_engine(
        url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=engine_options(url)["connect_args"]
    )
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _check_privileges(connection: Connection, shown: str) -> None:
    if connection.execute(text("SELECT pg_is_in_recovery()")).scalar():
        raise StudyError(f"{shown} is a standby that takes no writes; give --storage the address of the primary")
    schema = connection.execute(text("SELECT current_schema()")).scalar()
    if schema is None:
        raise StudyError(f"the user of {shown} sees no schema; GRANT USAGE, CREATE ON SCHEMA public to it")
    allowed = {row.relname: bool(row.allowed) for row in connection.execute(text(_TABLES))}
    refused = [name for name, may in allowed.items() if not may]
    if refused:
        raise StudyError(
            f"the user of {shown} may not write to the tables {', '.join(refused)}; GRANT SELECT, INSERT, UPDATE, "
            f"DELETE ON ALL TABLES IN SCHEMA {schema} to it"
        )
    create = text("SELECT has_schema_privilege(current_schema(), 'CREATE')")
    if "studies" not in allowed and not connection.execute(create).scalar():
        raise StudyError(f"the user of {shown} may make no tables; GRANT CREATE ON SCHEMA {schema} to it")


def _check_lock(first: Connection, second: Connection, shown: str) -> None:
    """A pooler that shares connections between transactions gives both the same one, and the lock to both."""
    key = {"key": secrets.randbits(62)}
    take, free = text("SELECT pg_try_advisory_lock(:key)"), text("SELECT pg_advisory_unlock(:key)")
    mine = first.execute(take, key).scalar()
    other = second.execute(take, key).scalar()
    if other:
        second.execute(free, key)
    freed = first.execute(free, key).scalar()
    if not mine or other or not freed:
        raise StudyError(
            f"advisory locks of {shown} do not keep a second driver out, as with PgBouncer in transaction mode; give "
            "--storage the address of the server itself, or pool by session"
        )
