"""A mark beside the journal: events were lost, so the runs in MLflow need the study's record again."""

from __future__ import annotations

import json
import os
from pathlib import Path

FORMAT_VERSION = 1


class OwedMark:
    """Set when the first event is lost, cleared when the record was replayed; survives the process.

    The file is made beforehand and only written over with text of the same length, which a full disk still allows.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = False
        self._set = self._read()
        self._write()

    def __bool__(self) -> bool:
        return self._set

    def set(self) -> None:
        """Never raises: what cannot be written is tried again by the next call."""
        if not (self._set and self._written):
            self._set = True
            self._write()

    def clear(self) -> None:
        if self._set:
            self._set = False
            self._write()

    def _read(self) -> bool:
        try:
            return bool(json.loads(self._path.read_bytes())["owed"])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            return True  # a replay too many changes nothing

    def _write(self) -> None:
        text = json.dumps({"format_version": FORMAT_VERSION, "owed": int(self._set)}).encode() + b"\n"
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                self._written = os.pwrite(handle, text, 0) == len(text)
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError:
            self._written = False
