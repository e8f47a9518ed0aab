"""The images that a command is given: files and folders, listed in one order, decoded a bounded number ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sctune.data.images import THREADS
from sctune.data.places import looking_at
from sctune.data.walk import LeftOut, images_below, read_types
from sctune.deploy.calibration import Prepared
from sctune.deploy.incoming import prepared, scores, shown
from sctune.deploy.model import Model
from sctune.errors import DataError
from sctune.serve.filestate import FileState, read_file

CHUNK = 16
"""Images that are scored, and written, together: a stop waits for one such chunk."""
AHEAD = 2 * CHUNK
"""Decoded images, and images being decoded, that wait to be scored."""


_Item = tuple[str, FileState | None, Prepared | str]
"""A path, what was read there, and its image or what is wrong with it."""


@dataclass(frozen=True)
class ScoredFile:
    """What became of one image. path: as it was given; error: one line, then image or score is None.

    file: what was read, None where nothing could be.
    """

    path: str
    image: Prepared | None
    score: float | None
    error: str | None
    file: FileState | None


def list_inputs(places: Sequence[str], told: Callable[[str], None] = lambda line: None) -> list[str]:
    """Paths of all images in files and folders (with what is below, also through links), sorted, each once.

    Each path begins as its place was given. told: called with one line for each folder of which something was left
    out: other types, hidden files, thumbnails, links that lead back. Raises DataError for a place that is not there
    or a folder that cannot be listed, and where there is no image at all.
    """
    found: dict[str, str] = {}
    left = []
    for place in places:
        path = Path(place).expanduser()
        with looking_at(path):
            is_folder, there = path.is_dir(), path.exists()
        if not there:
            raise DataError(f"there is no file or folder {place}; give images or folders of images")
        names, left_out = images_below(path) if is_folder else ([""], LeftOut())
        left += [line for line in [left_out.line(shown(str(path)))] if line]
        for name in (str(path / name) for name in names):
            found.setdefault(os.path.abspath(name), name)
    if not found:
        reason = left[0] if left else f"{read_types()} are read"
        raise DataError(f"no images in {', '.join(map(str, places))}; {reason}")
    for line in left:
        told(line)
    return sorted(found.values())


def scored(model: Model, paths: Iterable[str]) -> Iterator[list[ScoredFile]]:
    """Chunks of at most CHUNK images, in the order of the paths; memory does not grow with their number."""
    chunk: list[_Item] = []
    for item in _prepared(model, paths):
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield _scored_chunk(model, chunk)
            chunk = []
    if chunk:
        yield _scored_chunk(model, chunk)


def _prepared(model: Model, paths: Iterable[str]) -> Iterator[_Item]:
    """Each path with its file and its image, or with what is wrong with it."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="sctune-decode")
    waiting: deque[Future[_Item]] = deque()
    try:
        for path in paths:
            waiting.append(pool.submit(_load, model, path))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load(model: Model, path: str) -> _Item:
    read = read_file(path)
    if isinstance(read, str):
        return path, None, read
    content, file = read
    return path, file, prepared(model, content, path)


def _scored_chunk(model: Model, chunk: Sequence[_Item]) -> list[ScoredFile]:
    good = [(path, image) for path, _, image in chunk if not isinstance(image, str)]
    found = iter(scores(model, [image for _, image in good], [path for path, _ in good]))
    done = []
    for path, file, image in chunk:
        score = image if isinstance(image, str) else next(found)
        prepared_image = None if isinstance(image, str) else image
        if isinstance(score, str):
            done.append(ScoredFile(path, prepared_image, None, score, file))
        else:
            done.append(ScoredFile(path, prepared_image, score, None, file))
    return done
