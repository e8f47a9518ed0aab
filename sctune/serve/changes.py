"""Which rows of a table are no longer those of their files: size and time first, the content where these differ."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sctune.data.images import THREADS
from sctune.deploy.incoming import shown
from sctune.serve.appending import Known
from sctune.serve.filestate import FileState, look, read_file


@dataclass(frozen=True)
class Changes:
    """Paths as they stand in the table.

    changed: of another content than when they were scored; unsure: rows of an earlier sctune, which say nothing of the
    content; touched: of the same content at another time; gone: rows of files that are no longer there.
    """

    changed: frozenset[str]
    unsure: frozenset[str]
    touched: Mapping[str, FileState]
    gone: tuple[str, ...]

    @property
    def stale(self) -> frozenset[str]:
        """Paths whose rows are to be made anew."""
        return self.changed | self.unsure


def find_changes(known: Mapping[str, Known], paths: Sequence[str]) -> Changes:
    """Compare the rows of a table with the files as they are now; paths: of all images that are asked for.

    Only files whose size or time differs, or which could not be read before, are read.
    """
    changed, unsure, asked = set(), set(), set()
    doubtful: list[str] = []
    for path in paths:
        name = shown(path)
        asked.add(name)
        row = known.get(name)
        if row is None:
            continue
        if row.state is None and row.error is None:
            unsure.add(name)
        elif row.state is None or (now := look(path)) is None:
            doubtful.append(path)
        elif now[0] != row.state.size:
            changed.add(name)
        elif now[1] != row.state.time:
            doubtful.append(path)
    touched: dict[str, FileState] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for path, now_there in zip(doubtful, pool.map(_now, doubtful), strict=True):
            row = known[shown(path)]
            if isinstance(now_there, str):
                same = row.error == now_there
            else:
                same = row.state is not None and row.state.digest == now_there.digest
            if not same:
                changed.add(shown(path))
            elif isinstance(now_there, FileState):
                touched[shown(path)] = now_there
    gone = [name for name in known if name not in asked and _is_gone(name)]
    return Changes(frozenset(changed), frozenset(unsure), touched, tuple(gone))


def _now(path: str) -> FileState | str:
    read = read_file(path)
    return read if isinstance(read, str) else read[1]


def _is_gone(name: str) -> bool:
    # a name with codes in it may stand for another one
    return "\\" not in name and not os.path.lexists(name)
