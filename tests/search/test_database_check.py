"""A database that cannot keep a record is told in one line with the way out, before anything is spent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from sctune.errors import StudyError
from sctune.search.study import database_check
from sctune.search.study.database import check_free, storage_url
from sctune.search.study.database_check import check_database


def bare(postgres: Any, database: str = "studies", password: str | None = None) -> str:
    return storage_url(postgres.url(database) if password is None else postgres.url(database, password))


def test_a_server_with_everything(postgres: Any) -> None:
    postgres.create("roomy")
    assert check_database(bare(postgres, "roomy")).startswith("PostgreSQL 1")
    assert postgres.query("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", "roomy") == [(0,)]
    # every time, and with nothing left locked
    check_database(bare(postgres, "roomy"))
    assert postgres.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "roomy") == [(0,)]


def test_a_wrong_password_and_a_server_that_is_down(postgres: Any) -> None:
    with pytest.raises(StudyError, match=r"password authentication failed.*give the password by PGPASSWORD") as raised:
        check_database(bare(postgres, "studies", "wrong-4711"))
    assert "wrong-4711" not in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(StudyError, match=r"^cannot open the record at postgresql\+psycopg://127\.0\.0\.1:1/studies: "):
        check_database(storage_url("postgresql://sctune@127.0.0.1:1/studies"))


def test_privileges_that_are_missing_are_named_with_the_grant(postgres: Any) -> None:
    postgres.create("strict")
    postgres.query("CREATE ROLE guest LOGIN PASSWORD 'guest-2209'", "strict")
    guest = storage_url(f"postgresql://guest:guest-2209@127.0.0.1:{postgres.port}/strict")
    with pytest.raises(StudyError, match="may make no tables; GRANT CREATE ON SCHEMA public to it"):
        check_database(guest)
    postgres.query("GRANT CREATE ON SCHEMA public TO guest", "strict")
    check_database(guest)
    postgres.query("CREATE TABLE studies (id int)", "strict")
    postgres.query("CREATE TABLE trials (id int)", "strict")
    postgres.query("GRANT SELECT, INSERT, UPDATE, DELETE ON studies TO guest", "strict")
    postgres.query("GRANT SELECT, INSERT, UPDATE ON trials TO guest", "strict")
    with pytest.raises(StudyError, match="may not write to the tables trials; GRANT SELECT, INSERT, UPDATE, DELETE"):
        check_database(guest)
    postgres.query("GRANT DELETE ON trials TO guest", "strict")
    check_database(guest)


def test_a_pool_that_shares_connections_does_not_keep_a_second_driver_out(
    postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = database_check._connection
    held: list[Connection] = []

    @contextmanager
    def pooled(url: str) -> Iterator[Connection]:
        if held:
            yield held[0]
            return
        with own(url) as connection:
            held.append(connection)
            yield connection

    monkeypatch.setattr(database_check, "_connection", pooled)
    with pytest.raises(StudyError, match="do not keep a second driver out, as with PgBouncer"):
        check_database(bare(postgres))


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = storage_url(f"sqlite:///{tmp_path}/record.db")
    assert check_database(url) == f"SQLite in {tmp_path}" and not list(tmp_path.iterdir())
    with pytest.raises(StudyError, match="is no folder that can be written to"):
        check_database(storage_url(f"sqlite:///{tmp_path}/missing/record.db"))
    (tmp_path / "record.db").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StudyError, match=r"cannot write to the record .*; make it writable, or give another --storage"):
        check_database(url)
    monkeypatch.undo()
    check_free(url, "mine")
