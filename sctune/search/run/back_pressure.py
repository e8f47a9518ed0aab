"""Whether a trial may be started now: there must be room for its checkpoints, and the record must be writable.

A full disk, a storage or a database that is away pauses a search with a line that says so; it goes on by itself.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from pyarrow import fs
from pydantic import ByteSize

from sctune.errors import StorageError
from sctune.search.run.retention import CheckpointKeeper
from sctune.trial.storage import open_storage, probe, reason

CHECK_S = 5.0
"""Seconds between looks."""

LIST_S = 60.0
"""Seconds between listings of an object store, which take a while there and cost money; local files: each look."""

MARGIN = 16 * 2**20
"""Bytes that stay free beside the checkpoints: the record, logs, what others write meanwhile."""


class Gate(Protocol):
    """Whether starts are held back at present; stuck: why that will not end by itself."""

    stuck: str | None

    def __call__(self) -> bool: ...
    def doubt(self) -> None:
        """The storage took no checkpoint: hold starts back until it takes a file."""


class _Open:
    stuck: str | None = None

    def __call__(self) -> bool:
        return False

    def doubt(self) -> None:
        pass


OPEN = _Open()


class DiskUse:
    """What a study takes and may take. folder: of the study; storage: URI of its checkpoints."""

    def __init__(self, folder: Path, storage: str) -> None:
        self._system, self._root = open_storage(storage)
        self._local = isinstance(self._system, fs.LocalFileSystem)
        self._folder = folder
        self._files: dict[str, int] | None = None
        self._listed_at = 0.0

    def used(self, fresh: bool = False) -> int:
        """Bytes of the study's folder and of its checkpoints, those being written included.

        fresh: an object store is listed now; else what it held within the last LIST_S seconds.
        """
        inside = self._local and Path(self._root).resolve().is_relative_to(self._folder.resolve())
        return _size(fs.LocalFileSystem(), str(self._folder)) + (0 if inside else sum(self._listed(fresh).values()))

    def largest_checkpoint(self) -> int:
        """Bytes of the largest trial's checkpoints so far; 0 before the first."""
        sizes: dict[str, int] = {}
        base = f"{self._root}/trials/"
        for path, size in self._listed().items():
            if path.startswith(base):
                trial = path.removeprefix(base).partition("/")[0]
                sizes[trial] = sizes.get(trial, 0) + size
        return max(sizes.values(), default=0)

    def answers(self) -> None:
        """Raises OSError where an object store does not answer; costs one small request."""
        if not self._local:
            self._system.get_file_info(self._root)

    def free(self, concurrent: int) -> list[tuple[str, int, int]]:
        """(folder, free bytes of its disk, bytes that may be needed there) of the driver's own disks.

        concurrent: trials at a time; only the disk that takes their checkpoints needs room for those.
        """
        places = {str(self._folder): MARGIN}
        if self._local:
            wanted = MARGIN + concurrent * self.largest_checkpoint()
            if _device(self._folder) == _device(Path(self._root)):
                places[str(self._folder)] = wanted
            places[self._root] = wanted
        return [
            (place, shutil.disk_usage(_existing(Path(place))).free, wanted) for place, wanted in sorted(places.items())
        ]

    def _listed(self, fresh: bool = False) -> dict[str, int]:
        """Path -> bytes of each file in the storage."""
        now = time.monotonic()
        if self._local or fresh or self._files is None or now - self._listed_at >= LIST_S:
            self._files = {info.path: info.size for info in _files(self._system, self._root)}
            self._listed_at = now
        return self._files

    def probe(self) -> None:
        """Raises OSError where the storage takes no file where the checkpoints go."""
        probe(self._system, f"{self._root}/trials")


class StartGate:
    """Called before each start; True: not now. As a context it looks again every CHECK_S seconds in its own thread.

    concurrent: trials at a time, which may change.
    say: prints one line for people, from any thread. trouble: why the record cannot be written at present, or None.
    stuck: why the pause cannot end by itself.
    """

    def __init__(
        self,
        use: DiskUse,
        keeper: CheckpointKeeper,
        max_bytes: int | None,
        concurrent: int,
        trouble: Callable[[], str | None],
        say: Callable[[str], None],
    ) -> None:
        self._use, self._keeper, self._max, self.concurrent = use, keeper, max_bytes, concurrent
        self._trouble, self._say = trouble, say
        self._disk: str | None = None
        self._doubts = self._dispelled = 0
        self._told: str | None = None
        self._telling = threading.Lock()
        self._ended = threading.Event()
        self.stuck: str | None = None

    def __enter__(self) -> StartGate:
        self.look()
        threading.Thread(target=self._watch, daemon=True, name="sctune-disk").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(CHECK_S):
            self.look()
            # told even while no trial is to be started: those that run may be waiting for room
            self()

    def __call__(self) -> bool:
        doubted = "the study's storage took no checkpoint" if self._doubts > self._dispelled else None
        why = self._trouble() or self._disk or doubted
        with self._telling:
            # figures in a reason change from look to look; told once, until it is over
            if why is not None and self._told is None:
                self._say(f"paused, no trial is started: {why}")
            if why is None and self._told is not None:
                self._say("going on: there is room again, and storage and record can be written")
            self._told = why
        return why is not None

    def doubt(self) -> None:
        """The storage took no checkpoint: start nothing until it takes a file again."""
        self._doubts += 1

    def look(self) -> None:
        """See what there is now; the worst full runs give way to --max-disk here."""
        try:
            self._use.answers()
            trouble = self._too_much() or self._no_room()
            doubts = self._doubts
            if trouble is None and doubts > self._dispelled:
                self._use.probe()
                # one that came meanwhile stays
                self._dispelled = doubts
            self._disk = trouble
        except (OSError, StorageError) as problem:
            self._disk = f"the study's storage does not answer or refuses: {reason(problem)}"

    def _no_room(self) -> str | None:
        for place, free, wanted in self._use.free(self.concurrent):
            if free < wanted:
                return (
                    f"the disk of {place} has {_human(free)} free, and {_human(wanted)} may be needed; free some, "
                    "or stop the search and resume it later"
                )
        return None

    def _too_much(self) -> str | None:
        if self._max is None:
            return None
        used = self._use.used()
        if used > self._max:
            # what is to be removed is decided by what is there now
            used = self._use.used(fresh=True)
        while used > self._max and self._keeper.drop_worst():
            used = self._use.used(fresh=True)
        if used <= self._max:
            self.stuck = None
            return None
        reason = f"the study takes {_human(used)}, more than --max-disk {_human(self._max)}"
        self.stuck = f"{reason}, and only the best trial is kept; a larger --max-disk is needed"
        return f"{reason}; running trials come to their end first"


def _size(system: fs.FileSystem, root: str) -> int:
    return sum(info.size for info in _files(system, root))


def _files(system: fs.FileSystem, root: str) -> list[fs.FileInfo]:
    try:
        found = system.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
    except FileNotFoundError:  # a folder was removed while it was being listed
        return []
    return [info for info in found if info.type == fs.FileType.File and info.size is not None]


def _device(path: Path) -> int:
    """Number of the disk that a folder, there already or not, lies on."""
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _human(count: int) -> str:
    return ByteSize(count).human_readable(decimal=True)
