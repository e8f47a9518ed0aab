"""The images that a command is given: files and folders, listed in one order, decoded a bounded number ahead."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sctune.data.images import THREADS
from sctune.data.places import UNPRINTABLE, looking_at
from sctune.data.walk import LeftOut, images_below, read_types
from sctune.deploy.calibration import Prepared
from sctune.deploy.model import Model
from sctune.errors import DataError, NonFiniteError

CHUNK = 16
"""Images that are scored, and written, together: a stop waits for one such chunk."""
AHEAD = 2 * CHUNK
"""Decoded images, and images being decoded, that wait to be scored."""


@dataclass(frozen=True)
class Scored:
    """What became of one image. path: as it was given; error: one line, then image or score is None."""

    path: str
    image: Prepared | None
    score: float | None
    error: str | None


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


def scored(model: Model, paths: Iterable[str]) -> Iterator[list[Scored]]:
    """Chunks of at most CHUNK images, in the order of the paths; memory does not grow with their number."""
    chunk: list[tuple[str, Prepared | str]] = []
    for item in _prepared(model, paths):
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield _scored_chunk(model, chunk)
            chunk = []
    if chunk:
        yield _scored_chunk(model, chunk)


def shown(path: str) -> str:
    """A path as a table or a page can hold it: what is no UTF-8, and control characters, by their codes."""
    from unicodedata import category

    if path.isprintable():
        return path
    return "".join(
        letter.encode("unicode_escape", "surrogatepass").decode() if category(letter) in UNPRINTABLE else letter
        for letter in path
    )


def _prepared(model: Model, paths: Iterable[str]) -> Iterator[tuple[str, Prepared | str]]:
    """Each path with its image, or with what is wrong with it."""
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="sctune-decode")
    waiting: deque[tuple[str, Future[Prepared | str]]] = deque()
    try:
        for path in paths:
            waiting.append((path, pool.submit(_load, model, path)))
            if len(waiting) == AHEAD:
                path, first = waiting.popleft()
                yield path, first.result()
        while waiting:
            path, first = waiting.popleft()
            yield path, first.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _load(model: Model, path: str) -> Prepared | str:
    try:
        # a pipe or a device would be waited for, or read for ever
        if not stat.S_ISREG(os.stat(path).st_mode):
            return f"{shown(path)} is no regular file"
        return model.prepare(Path(path))
    except OSError as problem:
        return f"cannot read {shown(path)}: {problem.strerror}"
    except DataError as problem:
        return shown(" ".join(str(problem).split()))


def _scored_chunk(model: Model, chunk: Sequence[tuple[str, Prepared | str]]) -> list[Scored]:
    images = [image for _, image in chunk if not isinstance(image, str)]
    scores = iter(_scores(model, images))
    done = []
    for path, image in chunk:
        if isinstance(image, str):
            done.append(Scored(path, None, None, image))
            continue
        score = next(scores)
        error = score if isinstance(score, str) else None
        done.append(Scored(path, image, None if isinstance(score, str) else score, error))
    return done


def _scores(model: Model, images: Sequence[Prepared]) -> list[float | str]:
    """The score of each image, or what is wrong with it."""
    try:
        return list(model.score([image.pixels for image in images]).tolist())
    except NonFiniteError:
        # one by one, so that one image costs no other its score
        return [_one_score(model, image) for image in images]


def _one_score(model: Model, image: Prepared) -> float | str:
    try:
        return float(model.score([image.pixels])[0])
    except NonFiniteError:
        return "its score is no finite number"
