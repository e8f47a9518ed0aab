"""The tracking journal: events on disk in order, and a cursor that says how many were delivered.

One JSON object per line: {"format_version": 1, "seq": n, "event": {...}}, seq counted from 1 for ever.
A crash may tear the last line; it is cut off when the journal is opened again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sctune.errors import TrackingError
from sctune.tracking.events import Event

FORMAT_VERSION = 1

_log = logging.getLogger(__name__)


class Journal:
    """Appends at the end, reads on from where the last batch ended. One writer process at a time.

    `append` and `sync` belong to one thread, `read` and `mark_delivered` to another. Raises TrackingError when
    the folder cannot be written or a newer sctune wrote the journal.
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
        self._offset = self._next_offset = 0

    def append(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Number the events and write them; on an OSError (disk full) the file is as it was before."""
        lines, seq = [], self.last
        for event in events:
            seq += 1
            row = {"format_version": FORMAT_VERSION, "seq": seq, "event": event}
            lines.append(json.dumps(row, default=str).encode() + b"\n")
        block = b"".join(lines)
        try:
            rest = memoryview(block)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(block)
        self.last = seq

    def sync(self) -> None:
        """Make sure that what was appended survives a power cut."""
        os.fsync(self._file.fileno())

    def read(self, limit: int) -> tuple[list[Event], int]:
        """Up to `limit` events that were not delivered yet, and the number of the last one read."""
        events: list[Event] = []
        last, end = self.delivered, self._size
        with self.path.open("rb") as stream:
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
        """Everything up to `seq`, the last number that `read` gave, has arrived; replaces the cursor file at once."""
        text = json.dumps({"format_version": FORMAT_VERSION, "delivered": seq})
        staged = self._cursor_path.with_name(self._cursor_path.name + ".new")
        staged.write_text(text, encoding="utf-8")
        staged.replace(self._cursor_path)
        self.delivered, self._offset = seq, self._next_offset

    def close(self) -> None:
        self._file.close()

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
                    size, last = end, row["seq"]
        return size, last


def _parse(line: bytes, key: str = "seq") -> dict[str, Any] | None:
    # a line without its end is torn, even where it happens to be valid JSON
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith(b"\n") or key != "seq"
    return row if whole and isinstance(row, dict) and key in row else None
