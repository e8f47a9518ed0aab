"""Places and names as people give them: what the system refuses becomes one line."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sctune.errors import DataError

UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories: control characters, bytes that are not UTF-8 (as surrogates), line and paragraph ends."""


@contextmanager
def looking_at(place: Path | str) -> Iterator[None]:
    """Turns what the operating system refuses in the block into a DataError that names the place.

    Path.is_dir, is_file and exists raise too: for names that are too long, and where a folder above is closed.
    """
    try:
        yield
    except OSError as problem:
        raise DataError(
            f"cannot read {problem.filename or place}: {problem.strerror or problem}; give a place that can be read"
        ) from None


def absolute(path: Path | str) -> Path:
    """With `~` filled in; links and `..` stay. Raises DataError where there is no working folder."""
    with looking_at(path):
        return Path(os.path.expanduser(path)).absolute()


def resolved(path: Path) -> Path:
    """Where a place really is, whether it exists or not; links that lead nowhere stay as they are."""
    return Path(os.path.realpath(path))


def refuse_unprintable(name: str) -> None:
    """Raises DataError for names that no manifest and no message of one line can hold."""
    if not name.isprintable() and any(unicodedata.category(letter) in UNPRINTABLE for letter in name):
        raise DataError(f"{name!r}: a name must be UTF-8 without control characters; rename it and run again")
