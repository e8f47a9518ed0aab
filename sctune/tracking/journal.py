"""The tracking journal: events on disk in order, and a cursor that says how many were delivered.

One JSON object per line: {"format_version": 1, "seq": n, "event": {...}}, seq counted from 1 for ever.
A crash may tear the last line; it is cut off when the journal is opened again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from sctune.errors import TrackingError
from sctune.tracking.events import Event

FORMAT_VERSION = 1
COMPACT_BYTES = 16 * 2**20
"""What was delivered is cut off when it is this long, so that a launch of a week does not fill the disk."""

LARGEST = 2**62
"""Numbers above it were never written."""

_log = logging.getLogger(__name__)


class Journal:
    """Appends at the end, reads on from where the last batch ended. One writer process at a time.

    `append`, `sync` and `compact` belong to one thread, `read` and `mark_delivered` to another. Raises TrackingError
    when the folder cannot be written or a newer sctune wrote the journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cursor_path = path.with_name(path.name + ".cursor")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.delivered = self._read_cursor()
            self._size, last = self._repair()
            self.last = max(last, self.delivered)
            if self.last == self.delivered:
                self._size = 0  # nothing is owed: start a new file, the numbers go on
            self._file = path.open("ab", buffering=0)
            self._file.truncate(self._size)
        except OSError as problem:
            raise TrackingError(f"cannot write the tracking journal {path}: {problem}") from None
        # where the first undelivered line begins, and where the last read ended
        self._offset = self._next_offset = 0
        self._unsynced = self._torn = False
        self._lock = Lock()

    def append(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Number the events and write them; gives how many could not be written as JSON and were left out.

        On an OSError (disk full) the journal is as it was before.
        """
        lines, seq = [], self.last
        for event in events:
            line = _line(seq + 1, event)
            if line is not None:
                seq += 1
                lines.append(line)
        block = b"".join(lines)
        with self._lock:
            if self._torn:
                self._cut()
            self._torn = True
            rest = memoryview(block)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._cut()
                raise
            self._torn, self._unsynced = False, True
            self._size += len(block)
            self.last = seq
        return len(events) - len(lines)

    def sync(self) -> None:
        """Make sure that what was appended survives a power cut."""
        if self._unsynced:
            os.fsync(self._file.fileno())
            self._unsynced = False

    def compact(self, limit: int = COMPACT_BYTES) -> None:
        """Cut off what was delivered, where that is `limit` bytes or more and the larger part; the numbers go on.

        The cursor counts events and not bytes, so a crash on either side of the exchange changes nothing.
        """
        with self._lock:
            start = self._offset
            if start < max(limit, self._size - start) or self._torn:
                return
            staged = self.path.with_name(self.path.name + ".new")
            with self.path.open("rb") as source, staged.open("wb") as target:
                source.seek(start)
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(target.fileno())
            staged.replace(self.path)
            self._file.close()
            self._file = self.path.open("ab", buffering=0)
            self._size -= start
            self._offset -= start
            self._next_offset -= start

    def read(self, limit: int) -> tuple[list[Event], int]:
        """Up to `limit` events that were not delivered yet, and the number of the last one read."""
        events: list[Event] = []
        with self._lock, self.path.open("rb") as stream:
            last, end = self.delivered, self._size
            stream.seek(self._offset)
            while len(events) < limit and stream.tell() < end:
                row = _parse(stream.readline())
                if row is None:
                    _log.warning("a damaged line in %s was left out", self.path)
                elif row["seq"] > self.delivered:
                    events.append(row["event"])
                    last = row["seq"]
            self._next_offset = stream.tell()
            if not events:
                self._offset = self._next_offset
        return events, last

    def mark_delivered(self, seq: int) -> None:
        """Everything up to `seq`, the last number that `read` gave, has arrived; replaces the cursor file at once.

        On a full disk the file stays behind: the next process then sends the same again, which changes nothing.
        """
        with self._lock:
            self.delivered, self._offset = seq, self._next_offset
        text = json.dumps({"format_version": FORMAT_VERSION, "delivered": seq})
        staged = self._cursor_path.with_name(self._cursor_path.name + ".new")
        try:
            staged.write_text(text, encoding="utf-8")
            staged.replace(self._cursor_path)
        except OSError as problem:
            _log.warning("cannot write the cursor %s: %s", self._cursor_path, problem)

    def close(self) -> None:
        self._file.close()

    def _cut(self) -> None:
        self._file.truncate(self._size)
        self._torn = False

    def _read_cursor(self) -> int:
        if not self._cursor_path.exists():
            return 0
        row = _parse(self._cursor_path.read_bytes(), key="delivered")
        if row is None:
            _log.warning("the damaged cursor %s was ignored; its journal is sent again", self._cursor_path)
            return 0
        self._refuse_newer(row, self._cursor_path)
        return int(row["delivered"])

    def _refuse_newer(self, row: Mapping[str, Any], path: Path) -> None:
        if row.get("format_version", 0) > FORMAT_VERSION:
            raise TrackingError(f"{path} was written by a newer sctune; update this installation")

    def _repair(self) -> tuple[int, int]:
        """Bytes of the journal up to its last whole line, and that line's number."""
        if not self.path.exists():
            return 0, 0
        size = end = last = 0
        with self.path.open("rb") as stream:
            for line in stream:
                end += len(line)
                row = _parse(line)
                if row is not None:
                    self._refuse_newer(row, self.path)
                    size, last = end, max(last, row["seq"])
        return size, last


def _line(seq: int, event: Mapping[str, Any]) -> bytes | None:
    row = {"format_version": FORMAT_VERSION, "seq": seq, "event": event}
    try:
        return json.dumps(row, default=str).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as problem:
        # it must not hold up all later ones for ever
        _log.warning("an event of kind %r cannot be written down: %s", event.get("kind"), problem)
        return None


def _parse(line: bytes, key: str = "seq") -> dict[str, Any] | None:
    # a line without its end is torn, even where it happens to be valid JSON
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or (key == "seq" and not line.endswith(b"\n")):
        return None
    numbers = (row.get(key), row.get("format_version", 0))
    whole = all(type(number) is int and 0 <= number < LARGEST for number in numbers)
    return row if whole and (key != "seq" or isinstance(row.get("event"), dict)) else None
