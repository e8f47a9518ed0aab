"""A table that rows are added to: taken up where it ended, and its stale rows replaced without a moment of loss."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from sctune.errors import DataError
from sctune.files import replace_files
from sctune.serve.filestate import FileState
from sctune.serve.table import (
    FileIdentity,
    Row,
    check_name,
    header_of,
    lines_of,
    refuse_other,
    rows_of,
    write_identity,
    writing,
)

_ROWS = 1000
"""Rows that are written together when a table is written anew."""


@dataclass(frozen=True)
class Known:
    """What a row says of its file: its state, None where it could not be read or an earlier sctune wrote the row."""

    state: FileState | None
    error: str | None


@dataclass
class Counts:
    """Rows by what became of them."""

    rows: int = 0
    anomalous: int = 0
    normal: int = 0
    failed: int = 0

    def add(self, row: Row) -> None:
        self.rows += 1
        self.failed += row["error"] is not None
        self.anomalous += row["label"] == "anomalous"
        self.normal += row["label"] == "normal"


class Table:
    """A table open for more rows; use `appending`. known: path -> what its row says; counts: of all rows."""

    def __init__(self, path: Path, stream: BinaryIO, identity: FileIdentity) -> None:
        self.path = path
        self.identity = identity
        self.known: dict[str, Known] = {}
        self.counts = Counts()
        self._stream = stream
        self._end = 0
        self._is_old = False

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows and hand them to the system; raises DataError for a full disk, with whole rows before it."""
        content = lines_of(self.path, rows, self.identity.columns)
        try:
            _write_all(self._stream, content)
        except OSError as problem:
            with suppress(OSError):
                self._stream.truncate(self._end)
            raise DataError(
                f"cannot write {self.path}: {problem.strerror}; {self.counts.rows} rows are there, make room and run "
                "the same command again"
            ) from None
        self._end += len(content)
        for row in rows:
            self.counts.add(row)

    def renew(self, stale: Collection[str], touched: Mapping[str, FileState]) -> None:
        """Leave out the rows of `stale` paths and set the time in those of `touched`, all at once or not at all.

        A table with the columns of an earlier version gets those of this one. Raises ConfigError for a full disk: then
        the table is as it was.
        """
        if not (stale or touched or self._is_old):
            return
        counts, left = Counts(), set(stale)
        made: list[BinaryIO] = []

        def kept() -> Iterator[Row]:
            self._stream.seek(0)
            for row in rows_of(self.path, io.BytesIO(self._stream.read())):
                if row["path"] in left:
                    continue
                if row["path"] in touched:
                    row["mtime"] = touched[row["path"]].time
                counts.add(row)
                yield row

        def write(staged: Path) -> None:
            made.append(staged.open("w+b", buffering=0))
            shutil.copymode(self.path, staged)
            # held before the others can see it
            _lock(made[0], self.path)
            _write_all(made[0], header_of(self.path, self.identity.columns))
            left_over = kept()
            while rows := list(islice(left_over, _ROWS)):
                _write_all(made[0], lines_of(self.path, rows, self.identity.columns))
            os.fsync(made[0].fileno())

        try:
            # where the name is a link, what it leads to is replaced
            replace_files({self.path.resolve(): write})
        except BaseException:
            for stream in made:
                stream.close()
            raise
        self.close()
        (self._stream,) = made
        self._end, self._is_old, self.counts = self._stream.tell(), False, counts
        for path in left:
            self.known.pop(path, None)

    def close(self) -> None:
        self._stream.close()

    def take_up(self) -> None:
        """Read the rows that are there, and cut off what was half written."""
        content = self._stream.read()
        self._end = content.rfind(b"\n") + 1
        for row in rows_of(self.path, io.BytesIO(content[: self._end])) if self._end else ():
            self.known[row["path"]] = Known(_state(row), row["error"])
            self.counts.add(row)
        self._stream.truncate(self._end)
        self._stream.seek(self._end)
        header = header_of(self.path, self.identity.columns)
        if not self._end:
            with writing(self.path):
                _write_all(self._stream, header)
            self._end = len(header)
        elif header:
            self._compare_header(content[: content.index(b"\n")].decode("utf-8-sig"))

    def _compare_header(self, line: str) -> None:
        columns = line.rstrip("\r").split(",")
        unknown = [name for name in columns if name not in self.identity.columns]
        if unknown:
            raise DataError(
                f"{self.path} has a column {unknown[0]!r}, which this sctune does not write; give another --out, or "
                "continue it with the sctune that wrote it"
            )
        self._is_old = tuple(columns) != self.identity.columns


@contextmanager
def appending(path: Path, identity: FileIdentity) -> Iterator[Table]:
    """A new table, or one of the same model and threshold to go on with.

    Raises DataError for an existing file of something else, for one that another process writes, and where it cannot
    be written.
    """
    check_name(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        refuse_other(path, identity)
        stream = path.open("a+b", buffering=0)
    table = Table(path, stream, identity)
    try:
        _lock(stream, path)
        if not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            # it was written anew by another command between the two lines above
            raise DataError(f"another command is writing {path}; wait for it, or give another --out")
        stream.seek(0)
        write_identity(path, identity)
        table.take_up()
        yield table
    finally:
        table.close()


def _lock(stream: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"another command is writing {path}; wait for it, or give another --out") from None
    except OSError:  # a network file system without locks
        pass


def _state(row: Mapping[str, Any]) -> FileState | None:
    size, time, digest = row["size"], row["mtime"], row["sha256"]
    return None if size is None or time is None or digest is None else FileState(size, time, digest)


def _write_all(stream: BinaryIO, content: bytes) -> None:
    # an unbuffered stream may take a part, which on a full disk comes before the error
    written = 0
    while written < len(content):
        written += stream.write(content[written:])
