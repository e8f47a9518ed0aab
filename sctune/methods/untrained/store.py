"""What a frozen network made of images, kept for all trials of a process, and on disk for all processes of a node.

A cache: whatever is missing, damaged or cannot be written is computed again, to the same numbers bit for bit.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sctune.files import keep_in_cache
from sctune.paths import cache_folder

SPARE_BYTES = 2**30
"""Free bytes of a disk that are left to others: nothing is kept on one that has fewer."""
MEMORY_BYTES = 2**28
"""Of features in this process; the least recently used are forgotten above it."""
_HOUR_S = 3600
_AT_ONCE = 500
_CHECK = 4
_TABLE = "CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, value BLOB, day INTEGER)"
"""day: hours since 1970 when a row was used; days in rows of before, which therefore go first."""

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """A file in the cache folder. most: its bytes, above which the least recently used quarter of its rows goes."""

    name: str
    most: int

    def takes(self, count: int, size: int) -> bool:
        """Whether so many rows of so many bytes are half of it at most.

        A walk over more than fits finds nothing when it comes by again, and writes all of it anew.
        """
        return 2 * count * size <= self.most


POOLED = Place("features.sqlite", 2**30)
"""Rows of some kilobytes an image."""
CELLS = Place("cells.sqlite", 2**31)
"""Maps in single precision before they are brought to one grid: 109 kB an image of 160 px with EfficientNet-Lite0, so
that all 2624 images of ELPV take 0.3 GB, and the 5354 of MVTec AD 0.6 GB.
"""


def image_digest(image: np.ndarray) -> bytes:
    """SHA-256 of a decoded image, uint8 [S, S, 3]."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()


class Memory:
    """Arrays by key, the latest ones up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._rows: OrderedDict[bytes, Features] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: bytes) -> Features | None:
        with self._lock:
            if key in self._rows:
                self._rows.move_to_end(key)
            return self._rows.get(key)

    def add(self, key: bytes, row: Features) -> None:
        with self._lock:
            before = self._rows.pop(key, None)
            self._rows[key] = row
            self.held += row.nbytes - (0 if before is None else before.nbytes)
            while self.held > self.limit:
                self.held -= self._rows.popitem(last=False)[1].nbytes


_memory = Memory(MEMORY_BYTES)


class FeatureStore:
    """Features of images under one network. network: digest of all that they depend on besides the pixels.

    shape: of those of one image. place: where other processes get them too, None: nowhere. folder: of that file, None:
    the cache folder.
    """

    def __init__(self, network: str, shape: Sequence[int], place: Place | None, folder: Path | None = None) -> None:
        self._network = network.encode()
        self._shape = tuple(shape)
        self._disk = None if place is None else _Disk(cache_folder() if folder is None else folder, place)

    def of(self, images: np.ndarray, compute: Callable[[np.ndarray], Features]) -> Features:
        """Features [N, ...] of uint8 images [N, S, S, 3]; compute: the same for those that are not known."""
        keys = [hashlib.sha256(self._network + image_digest(image)).digest() for image in images]
        found = {key: row for key in set(keys) if (row := _memory.find(key)) is not None}
        found |= self._stored([key for key in dict.fromkeys(keys) if key not in found])
        missing = {key: place for place, key in enumerate(keys) if key not in found}
        if missing:
            made = dict(zip(missing, compute(images[list(missing.values())]), strict=True))
            found |= made
            if self._disk is not None:
                self._disk.add({key: row.tobytes() for key, row in made.items()})
        for key in missing:
            _memory.add(key, found[key])
        return np.stack([found[key] for key in keys]) if keys else np.zeros((0, *self._shape), np.float32)

    def _stored(self, keys: Sequence[bytes]) -> dict[bytes, Features]:
        found = {}
        for key, value in (self._disk.find(keys) if self._disk is not None else {}).items():
            row = np.frombuffer(value, np.float32)
            if row.size == np.prod(self._shape) and np.isfinite(row).all():
                found[key] = row.reshape(self._shape)
                _memory.add(key, found[key])
        return found


class _Disk:
    """Bytes by key in a file that all processes of this machine share; one that cannot be used keeps nothing."""

    def __init__(self, folder: Path, place: Place) -> None:
        self._path = folder / place.name
        self._most = place.most

    def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        if not keys or not self._path.is_file():
            return found
        now = _hour()
        with suppress(sqlite3.Error, OSError), closing(self._open()) as base:
            aged = []
            for start in range(0, len(keys), _AT_ONCE):
                part = list(keys[start : start + _AT_ONCE])
                marks = ",".join("?" * len(part))
                for key, value, used in base.execute(f"SELECT * FROM features WHERE key IN ({marks})", part):
                    if isinstance(value, bytes) and zlib.crc32(value[_CHECK:]) == int.from_bytes(value[:_CHECK]):
                        found[key] = value[_CHECK:]
                        aged += [(now, key)] if used != now else []
            if aged:
                with base:
                    base.executemany("UPDATE features SET day = ? WHERE key = ?", aged)
        return found

    def add(self, rows: Mapping[bytes, bytes]) -> None:
        now = _hour()
        values = [(key, zlib.crc32(row).to_bytes(_CHECK) + row, now) for key, row in rows.items()]
        keep_in_cache(self._path, lambda: self._write(values))

    def _write(self, values: Sequence[tuple[bytes, bytes, int]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self._path.parent).free < SPARE_BYTES:
            return
        with closing(self._open()) as base, base:
            base.execute(_TABLE)
            base.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", values)
            (pages,), (free,), (size,) = (
                base.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
            )
            if (pages - free) * size > self._most:
                base.execute(
                    "DELETE FROM features WHERE key IN (SELECT key FROM features ORDER BY day, rowid LIMIT "
                    "(SELECT 1 + COUNT(*) / 4 FROM features))"
                )

    def _open(self) -> sqlite3.Connection:
        base = sqlite3.connect(self._path, timeout=5.0)
        # a power cut may damage the file, which is then made again; waiting for the disk would cost every process
        base.execute("PRAGMA synchronous = OFF")
        return base


def _hour() -> int:
    return int(time.time()) // _HOUR_S
