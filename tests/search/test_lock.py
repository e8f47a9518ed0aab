"""One driver per study, on one machine and over a shared database, whatever becomes of driver and database."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sctune.errors import StudyError
from sctune.search.study.database import DRIVER_ATTR, read_attrs, storage_url
from sctune.search.study.lock import DatabaseLock
from sctune.search.study.record import Record

HOLD = (
    "import sys; from sctune.search.study.lock import DatabaseLock\n"
    "lock = DatabaseLock(sys.argv[1], sys.argv[2], sys.argv[2]); lock.acquire()\n"
    "print(lock.fencing, flush=True); sys.stdin.read()"
)


@pytest.fixture
def study(postgres: Any, request: pytest.FixtureRequest) -> tuple[str, str]:
    """(bare URL, name) of an empty record."""
    url, name = storage_url(postgres.url()), request.node.name
    Record(url, name, create=True).close()
    return url, name


@contextmanager
def holder(postgres: Any, name: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another driver that holds the lock, and its fencing number."""
    command = [sys.executable, "-c", HOLD, postgres.url(), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def eventually(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def test_a_second_driver_is_refused_by_name_until_the_first_is_killed(postgres: Any, study: tuple[str, str]) -> None:
    url, name = study
    lock = DatabaseLock(url, name, name)
    assert DatabaseLock(url, name, name).is_free()
    with holder(postgres, name) as (process, fencing):
        assert not DatabaseLock(url, name, name).is_free()
        assert DatabaseLock(url, name, "another study").is_free()
        with pytest.raises(StudyError) as refused:
            lock.acquire()
        assert f"process {process.pid} on {socket.gethostname()} since 20" in str(refused.value)
        assert "\n" not in str(refused.value)
        process.send_signal(signal.SIGKILL)
        process.wait()

        def free() -> bool:
            try:
                lock.acquire()
            except StudyError:
                return False
            return True

        eventually(free, "the lock of a killed driver")
    assert (fencing, lock.fencing) == (1, 2)
    assert read_attrs(url, name)[DRIVER_ATTR]["pid"] == os.getpid()
    other = DatabaseLock(url, name, "another study")
    other.acquire()
    for each in (lock, other):
        each.release()


def test_a_restarted_server_gives_the_lock_back(postgres: Any, study: tuple[str, str]) -> None:
    url, name = study
    lock = DatabaseLock(url, name, name)
    lock.acquire()
    postgres.stop()
    assert lock.lost() is None
    postgres.start()
    assert lock.lost() is None
    with pytest.raises(StudyError, match="is being run by"):
        DatabaseLock(url, name, name).acquire()
    lock.release()


@pytest.mark.parametrize("ended", [False, True])
def test_a_lock_that_another_driver_took_meanwhile_is_lost(postgres: Any, study: tuple[str, str], ended: bool) -> None:
    """Also where that driver has ended again: it has written."""
    url, name = study
    lock = DatabaseLock(url, name, name)
    lock.acquire()
    postgres.query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    with holder(postgres, name) as (process, _):
        if ended:
            process.communicate("")
        line = lock.lost()
    assert line is not None
    assert str(process.pid) in line
