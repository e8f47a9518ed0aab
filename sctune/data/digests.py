"""SHA-256 of files, remembered between runs: a file whose size, times and inode are as they were is not read again."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeAlias

from sctune.errors import PlaceError
from sctune.files import file_sha256, keep_in_cache
from sctune.paths import cache_folder

THREADS = min(8, os.cpu_count() or 1)
STORE = "digests.sqlite"
SETTLED_NS = 2 * 10**9
"""A file that changed less than this ago may change once more and look the same, so it is read anew."""

MAX_FILES = 1_000_000
"""The least recently used beyond them are forgotten; at some 200 bytes each."""

FORGET_DAYS = 90
_DAY_S = 86_400
_AT_ONCE = 500
_TABLE = """CREATE TABLE IF NOT EXISTS digests (
    path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, inode INTEGER, sha256 BLOB, day INTEGER
) WITHOUT ROWID"""

State: TypeAlias = tuple[int, int, int, int]
"""Size in bytes, times of the last change of content and of anything (ns since 1970), inode."""

_seen: dict[str, tuple[State, str]] = {}
"""What this process knows, by absolute path."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, remembered in this process until its size, times or inode change.

    Raises PlaceError for a file that cannot be read.
    """
    place, began = os.path.abspath(path), time.time_ns()
    state = _state(place)
    known = _remembered(place, state)
    if known is None:
        known = _read(place)
        _remember(place, state, known, began)
    return known


def file_digests(root: Path, paths: Iterable[str], folder: Path | None = None) -> dict[str, str]:
    """Path -> SHA-256 of the file root/path, sorted by path; files that are as they were are not read again.

    folder: where the digests of earlier runs are kept; None: the cache folder. Where it cannot be read or written all
    files are read. Raises PlaceError for a file that cannot be read.
    """
    wanted = sorted(set(paths))
    base = os.path.abspath(root)
    # as os.path.abspath, which costs more than the state of a file does
    places = [os.path.normpath(os.path.join(base, path)) for path in wanted]
    store, began = _Store(cache_folder() if folder is None else folder), time.time_ns()
    # handing over a file costs more than asking for its state, so a thread gets many of them
    parts = [places[start : start + _AT_ONCE] for start in range(0, len(places), _AT_ONCE)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda part: [_state(place) for place in part], parts)
        states = dict(zip(places, (state for part in found for state in part), strict=True))
        known = {place: digest for place in places if (digest := _remembered(place, states[place])) is not None}
        stored = store.find({place: states[place] for place in places if place not in known})
        unread = [place for place in places if place not in known and place not in stored]
        read = dict(zip(unread, pool.map(_read, unread), strict=True))
    for place, digest in (stored | read).items():
        _remember(place, states[place], digest, began)
    store.add({place: (states[place], read[place]) for place in unread if _settled(states[place], began)})
    known |= stored | read
    return {path: known[place] for path, place in zip(wanted, places, strict=True)}


def data_digest(root: Path, paths: Iterable[str], folder: Path | None = None) -> str:
    """SHA-256 over the sorted paths and the contents of all files; folder: as in `file_digests`."""
    return joined_digest(file_digests(root, paths, folder))


def joined_digest(digests: Mapping[str, str]) -> str:
    """One SHA-256 for path -> SHA-256, whatever their order."""
    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


class _Store:
    """The digests that all processes of this machine share; one that cannot be used knows and keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self._path = Path(folder) / STORE

    def find(self, states: Mapping[str, State]) -> dict[str, str]:
        """Path -> digest of the files that are as they were when it was stored."""
        found: dict[str, str] = {}
        if not states or not self._path.is_file():
            return found
        today, names = _today(), list(states)
        with suppress(sqlite3.Error, OSError), closing(self._open()) as base:
            aged: list[tuple[int, bytes]] = []
            for start in range(0, len(names), _AT_ONCE):
                part = {os.fsencode(name): name for name in names[start : start + _AT_ONCE]}
                marks = ",".join("?" * len(part))
                for place, *state, sha256, day in base.execute(
                    f"SELECT * FROM digests WHERE path IN ({marks})", list(part)
                ):
                    if tuple(state) == states[part[place]] and isinstance(sha256, bytes) and len(sha256) == 32:
                        found[part[place]] = sha256.hex()
                        aged += [(today, place)] if day != today else []
            if aged:
                with base:
                    base.executemany("UPDATE digests SET day = ? WHERE path = ?", aged)
        return found

    def add(self, rows: Mapping[str, tuple[State, str]]) -> None:
        if not rows:
            return
        today = _today()
        values = [(os.fsencode(place), *state, bytes.fromhex(digest), today) for place, (state, digest) in rows.items()]
        keep_in_cache(self._path, lambda: self._write(values))

    def _write(self, values: Sequence[tuple[object, ...]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as base, base:
            base.execute(_TABLE)
            base.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            base.execute("DELETE FROM digests WHERE day < ?", (_today() - FORGET_DAYS,))
            (count,) = base.execute("SELECT COUNT(*) FROM digests").fetchone()
            if count > MAX_FILES:
                base.execute(
                    "DELETE FROM digests WHERE path IN (SELECT path FROM digests ORDER BY day LIMIT ?)",
                    (count - MAX_FILES,),
                )

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=5.0)


def _state(place: str) -> State:
    try:
        state = os.stat(place)
    except OSError as problem:
        raise PlaceError(f"cannot read {place}: {problem.strerror}") from None
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def _read(place: str) -> str:
    try:
        return file_sha256(place)
    except OSError as problem:
        raise PlaceError(f"cannot read {place}: {problem.strerror}") from None


def _remembered(place: str, state: State) -> str | None:
    known = _seen.get(place)
    return known[1] if known is not None and known[0] == state else None


def _remember(place: str, state: State, digest: str, began: int) -> None:
    if _settled(state, began):
        _seen[place] = (state, digest)


def _settled(state: State, began: int) -> bool:
    """Whether a later change would show in the state; began: time in ns, not after the state was taken."""
    return began - state[2] > SETTLED_NS


def _today() -> int:
    return int(time.time()) // _DAY_S
