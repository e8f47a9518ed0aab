"""What tells one content of a file from another: size, time of its last change, SHA-256."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from sctune.deploy.incoming import error_line, shown


@dataclass(frozen=True)
class FileState:
    """size: in bytes; time: of the last change, ISO 8601 in UTC with nanoseconds; digest: SHA-256 in hex."""

    size: int
    time: str
    digest: str


def read_file(path: str) -> tuple[bytes, FileState] | str:
    """The bytes of a regular file with their state, or one line about why they cannot be read.

    The time is that before reading: a file that is written meanwhile differs from its state at the next look.
    """
    try:
        # a pipe or a device would be waited for, or read for ever
        if not stat.S_ISREG(os.stat(path).st_mode):
            return f"{shown(path)} is no regular file"
        with open(path, "rb") as stream:
            time = os.fstat(stream.fileno()).st_mtime_ns
            content = stream.read()
    except OSError as problem:
        return f"cannot read {shown(path)}: {problem.strerror}"
    except MemoryError:
        return error_line(path, "the file takes more memory than there is")
    return content, FileState(len(content), time_text(time), sha256(content).hexdigest())


def look(path: str) -> tuple[int, str] | None:
    """Size and time of a regular file, without reading it; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_size, time_text(found.st_mtime_ns)) if stat.S_ISREG(found.st_mode) else None


def time_text(nanoseconds: int) -> str:
    """Nanoseconds since 1970 as ISO 8601 in UTC, none of them lost: 2026-11-29T07:58:00.123456789Z."""
    seconds, rest = divmod(nanoseconds, 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
    except (OverflowError, ValueError, OSError):  # a time that no calendar has, which file systems can hold
        return f"{nanoseconds} ns"
