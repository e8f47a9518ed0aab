"""Writing that leaves nothing half-done, and the places for it; raises ConfigError that names the option to change."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sctune.errors import ConfigError, SctuneError
from sctune.paths import nearest_folder, takes_files

LOOK_S = 0.5
"""Seconds between looks at what a process waits for."""


def replace_files(writers: Mapping[Path, Callable[[Path], object]], option: str = "--out") -> list[Path]:
    """Write all files beside their places, then put them there; gives the places.

    A writer is given the path to write to. Where one fails, none of the files is changed. Raises ConfigError with the
    file that cannot be written; option: of the command, by which another place is given.
    """
    # the type stays at the end: some writers look at it
    staged = {path: path.with_name(f".{os.getpid()}.{path.name}") for path in writers}
    at = next(iter(writers))
    try:
        for at, write in writers.items():
            refuse_folder(at, option)
            at.parent.mkdir(parents=True, exist_ok=True)
            write(staged[at])
        for at, ready in staged.items():
            os.replace(ready, at)
    except OSError as problem:
        raise ConfigError(
            f"cannot write {at}: {problem.strerror or problem}; mend that or give another {option}, then run the same "
            "command again"
        ) from None
    finally:
        for left in staged.values():
            with suppress(OSError):
                left.unlink(missing_ok=True)
    return list(writers)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside this one to write to; it takes its place when the block ends well, and is gone otherwise.

    Raises OSError.
    """
    # the type stays at the end: some writers look at it
    staged = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield staged
        os.replace(staged, path)
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """As `whole_file`, for a folder, made with those above it; raises OSError where one with files is there."""
    staged = folder.with_name(f".{os.getpid()}.{folder.name}")
    try:
        staged.mkdir(parents=True)
        yield staged
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def staged_files(folder: Path) -> Iterator[Path]:
    """A folder to write into; its files are put into `folder` when the block ends well, and none of them otherwise."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as staging:
        yield Path(staging)
        for path in sorted(Path(staging).iterdir()):
            place = folder / path.name
            if place.is_dir():
                shutil.rmtree(place)
            os.replace(path, place)


def keep_in_cache(path: Path, write: Callable[[], object]) -> None:
    """Write to an SQLite file that is a cache: where that cannot be, nothing is kept and nothing raised.

    write: opens the file and writes; called again after a file that is no database, or a damaged one, was removed.
    """
    try:
        write()
    except sqlite3.OperationalError:
        # locked, full or not to be written to: the next one may keep them
        return
    except sqlite3.DatabaseError:
        # whoever has the damaged one open keeps it
        with suppress(OSError, sqlite3.Error):
            path.unlink(missing_ok=True)
            write()
    except OSError:
        return


@contextmanager
def waited_for(lock: FileLock, pause: Callable[[], None]) -> Iterator[None]:
    """Inside, the lock is held. pause: called each LOOK_S seconds while another process has it; may raise."""
    while True:
        try:
            lock.acquire(timeout=LOOK_S)
            break
        except Timeout:
            pause()
    try:
        yield
    finally:
        lock.release()


def is_disk_full(problem: BaseException | str) -> bool:
    """Whether an error, or its text, says that a disk or a quota is full; libraries wrap the system's error."""
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(problem)
    return any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EDQUOT))


def refuse_folder(path: Path, option: str = "--out") -> None:
    """Raises ConfigError where a folder lies in a file's place."""
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder; remove it or give another {option}")


def check_writable(folder: Path, option: str = "--out", error: type[SctuneError] = ConfigError) -> None:
    """Raises `error` where the folder is none and cannot be made, before anything is computed; makes nothing."""
    if not takes_files(folder):
        raise error(f"{option}: {nearest_folder(folder)} is no folder that can be written to; give another one")


def file_sha256(path: Path | str) -> str:
    """Hex digest of a file's content; raises OSError."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
