"""Decoded images in one memory-mapped array per set of files, built once per node and shared by all its processes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from sctune.data.decode import CorruptImageError, Decoded, Decoding, Pixels, decode
from sctune.data.digests import THREADS, data_digest, file_digest, file_digests, joined_digest
from sctune.data.facts import Found, ImageFacts, measure, read_facts, write_facts
from sctune.errors import ChangedDataError, DataError, PlaceError
from sctune.files import waited_for

__all__ = [
    "THREADS",
    "CachedImages",
    "CorruptImageError",
    "ImageCache",
    "check_images",
    "data_digest",
    "file_digest",
]

FORMAT_VERSION = 2
DEFAULT_LIMIT = 20 * 2**30
RECENT_SECONDS = 600
"""Entries used within this time are never evicted: a trial may be about to map them."""
CHUNK, CHUNK_BYTES = 64, 2**26
"""Most images that are decoded ahead, and the most bytes of their pixels."""
Stored = np.memmap[Any, np.dtype[np.uint8]]
ARRAY, META, FACTS, UNFINISHED = "images.npy", "meta.json", "facts.json", ".tmp"
FACTS_FOLDER = "facts"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedImages:
    """array: uint8 [N, S, S, 3], memory-mapped, read-only; index: path -> row; skipped: corrupt paths, not in index."""

    array: Stored
    index: dict[str, int]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class CacheEntry:
    """One stored set: key, number of images, their side in pixels, bytes on disk, last use in seconds since 1970."""

    key: str
    images: int
    size: int
    nbytes: int
    used: float


class ImageCache:
    """A folder of decoded sets, keyed by content; safe for several processes at once.

    limit_bytes: least recently used sets are removed above it; a set just used or being built never is. Processes
    that have a removed set mapped keep it (POSIX).
    """

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_LIMIT) -> None:
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes

    def array(
        self,
        root: Path,
        paths: Sequence[str],
        decoding: Decoding,
        skip_corrupt: bool = False,
        content: str | None = None,
    ) -> CachedImages:
        """The images at root/paths as `decoding` has them; built where the cache does not hold them yet.

        The order of paths does not matter. content: their `data_digest`, where the caller knows it; what is stored of
        them is then found without the files. Raises PlaceError for a missing file and a cache folder that cannot be
        written, ChangedDataError for files to be decoded that are not of `content`, and, unless skip_corrupt,
        CorruptImageError for an image that cannot be decoded.
        """
        wanted = sorted(set(paths))
        if not wanted:
            raise DataError(f"no images of {root} are asked for")
        key = set_key(data_digest(root, wanted, self.folder) if content is None else content, decoding)

        def build(folder: Path) -> dict[str, Any]:
            if content is not None and data_digest(root, wanted, self.folder) != content:
                raise ChangedDataError(
                    f"the images in {root} hold something else than they did; put back what they held"
                )
            return _build(folder, root, wanted, decoding, skip_corrupt)

        meta, array = self._stored(key, len(wanted), decoding.size, build)
        skipped = tuple(meta["skipped"])
        if skipped and not skip_corrupt:
            first = root / skipped[0]
            raise CorruptImageError(f"{first} cannot be decoded, {len(skipped)} images in all; remove or skip them")
        if len(skipped) == len(wanted):
            raise DataError(f"none of the {len(wanted)} images of {root} can be decoded")
        index = {path: row for row, path in enumerate(wanted) if path not in set(skipped)}
        return CachedImages(array, index, skipped)

    def adopt(
        self,
        key: str,
        images: int,
        size: int,
        fetch: Callable[[Path], Mapping[str, Any]],
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        """Keep a set that another machine decoded; nothing is fetched where it is there already.

        key, images, size: as in CacheEntry. fetch: puts the stored array into the file that it is given, and gives what
        was stored with it (`stored`); called by one process of this machine at a time. pause: called while another one
        fetches the set; may raise. Raises PlaceError as `array` does, and what the two raise.
        """
        self._stored(key, images, size, lambda folder: fetch(folder / ARRAY), pause)

    def stored(self, key: str) -> tuple[Path, dict[str, Any]]:
        """The file with the array of a stored set, and what was stored with it; PlaceError where there is none."""
        with self._reported():
            meta = _read_meta(self.folder / key / META)
        if meta is None:
            raise PlaceError(f"the image cache entry {self.folder / key} is damaged; remove it and run again")
        return self.folder / key / ARRAY, meta

    def digests(self, root: Path, paths: Iterable[str]) -> dict[str, str]:
        """As `file_digests`, kept in this cache's folder."""
        return file_digests(root, paths, self.folder)

    def facts(
        self, root: Path, paths: Sequence[str], decoding: Decoding, digests: Mapping[str, str] | None = None
    ) -> Found:
        """What can be said of each image at root/paths, and why one cannot be decoded (`facts.ImageFacts`).

        digests: of these files and maybe others, where the caller knows them (`digests`). Measured while an array of
        the same images is built; where there is none, the images are decoded for it, and only the facts are kept.
        Raises DataError as `array` does.
        """
        wanted = sorted(set(paths))
        if not wanted:
            return {}
        known = self.digests(root, wanted) if digests is None else {path: digests[path] for path in wanted}
        key = set_key(joined_digest(known), decoding)
        stored = self.folder / FACTS_FOLDER / f"{key}.json"
        with self._reported():
            found = read_facts(self.folder / key / FACTS) or read_facts(stored)
            if found is None or set(found) != set(wanted):
                found = {
                    path: str(one) if isinstance(one, CorruptImageError) else one[1]
                    for path, one in zip(wanted, _decoded(root, wanted, decoding), strict=True)
                }
                write_facts(stored, found)
        return found

    def entries(self) -> list[CacheEntry]:
        """The stored sets, the least recently used first."""
        found = []
        for place in self.folder.glob(f"*/{META}"):
            # another process may remove it while we look
            with suppress(FileNotFoundError):
                if not place.parent.name.endswith(UNFINISHED):
                    # a damaged one is listed too, so that it can be removed
                    meta = _read_meta(place) or {"images": 0, "size": 0}
                    volume = (place.parent / ARRAY).stat().st_size
                    used = place.stat().st_mtime
                    found.append(CacheEntry(place.parent.name, meta["images"], meta["size"], volume, used))
        return sorted(found, key=lambda entry: (entry.used, entry.key))

    def clear(self, older_than_s: float = 0.0, keep_bytes: int = 0) -> int:
        """Remove the least recently used sets until `keep_bytes` are left; returns the bytes freed.

        Those used within `older_than_s` seconds, or being built at the moment, stay. A process that has a removed
        set mapped keeps it, and one that asks for it later builds it again, so a running search is not harmed.
        """
        freed = 0
        with self._reported():
            self._sweep()
            entries = self.entries()
            total = sum(entry.nbytes for entry in entries)
            for entry in entries:
                old = time.time() - entry.used >= older_than_s
                if old and total - freed > keep_bytes and self._remove(entry.key):
                    freed += entry.nbytes
            for place in (self.folder / FACTS_FOLDER).glob("*"):
                with suppress(FileNotFoundError):
                    if time.time() - place.stat().st_mtime >= older_than_s:
                        place.unlink()
        return freed

    def _open(self, key: str, images: int, size: int) -> tuple[dict[str, Any], Stored] | None:
        """A stored set; None where there is none, or it is damaged. Its bytes are read once per process for that."""
        place = self.folder / key
        try:
            meta = _read_meta(place / META)
            array = _whole_array(place / ARRAY, meta, (images, size, size, 3)) if meta else None
        except FileNotFoundError:
            return None
        if meta is None or array is None:
            return None
        # someone else's cache may be read-only; then its owner's use counts
        with suppress(OSError):
            os.utime(place / META)
        return meta, array

    def _stored(
        self,
        key: str,
        images: int,
        size: int,
        make: Callable[[Path], Mapping[str, Any]],
        pause: Callable[[], None] = lambda: None,
    ) -> tuple[dict[str, Any], Stored]:
        """A stored set, made where there is none. make: writes ARRAY into a folder and gives what META says of it."""
        with self._reported():
            opened = self._open(key, images, size)
            if opened is None:
                with waited_for(self._lock(key), pause):
                    # opened under the lock, which removing takes too
                    opened = self._open(key, images, size)
                    if opened is None:
                        if (self.folder / key).exists():
                            _log.warning("the image cache entry %s is damaged and is made again", self.folder / key)
                            shutil.rmtree(self.folder / key, ignore_errors=True)
                        self._make(key, make)
                        opened = self._open(key, images, size)
                self._trim()
            if opened is None:
                raise PlaceError(
                    f"the image cache {self.folder} was removed in the meantime, or its disk does not give back what "
                    "was written; try again"
                )
        return opened

    def _make(self, key: str, make: Callable[[Path], Mapping[str, Any]]) -> None:
        unfinished = self.folder / f"{key}{UNFINISHED}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            meta = make(unfinished)
            (unfinished / META).write_text(json.dumps(dict(meta)))
            unfinished.rename(self.folder / key)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _trim(self) -> None:
        entries = self.entries()
        total = sum(entry.nbytes for entry in entries)
        self._sweep()
        for entry in entries:
            if total <= self.limit_bytes:
                return
            if time.time() - entry.used > RECENT_SECONDS and self._remove(entry.key):
                total -= entry.nbytes

    def _sweep(self) -> None:
        """Remove what killed builds left behind."""
        for place in self.folder.glob(f"*{UNFINISHED}"):
            with suppress(Timeout), self._lock(place.name.removesuffix(UNFINISHED), timeout=0):
                shutil.rmtree(place, ignore_errors=True)

    def _remove(self, key: str) -> bool:
        try:
            with self._lock(key, timeout=0):
                # renamed first: nobody may open a set that is half gone
                going = (self.folder / key).rename(self.folder / f"{key}{UNFINISHED}")
                shutil.rmtree(going, ignore_errors=True)
        except (Timeout, FileNotFoundError):
            return False
        return True

    def _lock(self, key: str, timeout: float = -1) -> FileLock:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{key}.lock", timeout=timeout)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise PlaceError(f"cannot use the image cache {self.folder}: {problem.strerror or problem}") from None


def check_images(root: Path, paths: Iterable[str]) -> list[str]:
    """Sorted paths of the images that cannot be decoded; raises DataError for files that cannot be read."""
    wanted = sorted(set(paths))
    results = (one for chunk in _chunks(root, wanted, Decoding(8)) for one in chunk)
    return [path for path, one in zip(wanted, results, strict=True) if isinstance(one, CorruptImageError)]


def _build(folder: Path, root: Path, wanted: list[str], decoding: Decoding, skip_corrupt: bool) -> dict[str, Any]:
    """Decode images into a new folder; gives what META says of them."""
    size = decoding.size
    found: Found = {}
    with (folder / ARRAY).open("wb") as out:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(wanted), size, size, 3)}
        np.lib.format.write_array_header_1_0(out, header)
        skipped = []
        # plain writes instead of a mapping: a full disk is then an error and not a killed process
        for path, one in zip(wanted, _decoded(root, wanted, decoding), strict=True):
            if isinstance(one, CorruptImageError):
                if not skip_corrupt:
                    raise one
                skipped.append(path)
                found[path] = str(one)
                pixels = np.zeros((size, size, 3), np.uint8)
            else:
                pixels, found[path] = one
            out.write(pixels.tobytes())
        out.flush()
        os.fsync(out.fileno())
    write_facts(folder / FACTS, found)
    meta = {"format_version": FORMAT_VERSION, "images": len(wanted), "size": size, "skipped": skipped}
    return meta | {"sha256": file_digest(folder / ARRAY)}


def _decoded(
    root: Path, paths: Sequence[str], decoding: Decoding
) -> Iterator[tuple[Pixels, ImageFacts] | CorruptImageError]:
    """Images in order, with what was measured of them."""
    for chunk in _chunks(root, paths, decoding):
        facts = iter(measure([one for one in chunk if isinstance(one, Decoded)]))
        for one in chunk:
            yield (one.pixels, next(facts)) if isinstance(one, Decoded) else one


def _chunks(root: Path, paths: Sequence[str], decoding: Decoding) -> Iterator[list[Decoded | CorruptImageError]]:
    """Images in order, decoded by threads (Pillow releases the GIL), a bounded number ahead of the reader."""

    def load(path: str) -> Decoded | CorruptImageError:
        try:
            return decode(root / path, decoding)
        except CorruptImageError as problem:
            return problem

    count = max(1, min(CHUNK, CHUNK_BYTES // (3 * decoding.size**2)))
    with ThreadPoolExecutor(THREADS) as pool:
        # the next chunk is decoded while the reader looks at this one
        ahead = pool.map(load, paths[:count])
        for start in range(count, len(paths) + count, count):
            chunk = list(ahead)
            ahead = pool.map(load, paths[start : start + count])
            yield chunk


def _read_meta(place: Path) -> dict[str, Any] | None:
    """What was written with a set, None where it is damaged."""
    try:
        meta = json.loads(place.read_bytes())
    except (ValueError, RecursionError, IsADirectoryError):
        return None
    if not isinstance(meta, dict) or not all(type(meta.get(name)) is int for name in ("images", "size")):
        return None
    skipped = meta.get("skipped")
    return meta if isinstance(skipped, list) and all(isinstance(path, str) for path in skipped) else None


def _whole_array(place: Path, meta: dict[str, Any], shape: tuple[int, ...]) -> Stored | None:
    """The stored array, mapped; None where it is not what was written. Sets of earlier versions have no digest."""
    if not place.exists():
        raise FileNotFoundError(place)
    # read, not looked up: it is the disk that is doubted
    if meta.get("sha256") not in (None, file_digest(place)):
        return None
    try:
        array = np.load(place, mmap_mode="r")
    except ValueError:
        return None
    whole = isinstance(array, np.memmap) and array.shape == shape and array.dtype == np.uint8
    return array if whole else None


def set_key(content: str, decoding: Decoding) -> str:
    """Name of the stored set of images whose `data_digest` is `content`, as `decoding` has them."""
    text = json.dumps([FORMAT_VERSION, content, *decoding.key])
    return hashlib.sha256(text.encode()).hexdigest()[:40]
