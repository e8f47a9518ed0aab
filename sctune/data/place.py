"""Whether a machine has what trials need of it: the images, and a cache folder that takes them decoded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sctune.data.images import ImageCache
from sctune.errors import PlaceError

if TYPE_CHECKING:
    from sctune.data.split import Split

SAMPLES = 3
"""Files of each data set that are opened: a folder without its mount has none of them."""


@dataclass(frozen=True)
class Needs:
    """What every node must have. samples: image files, by full path; cache: folder of the decoded images.

    nbytes: what the images of all tasks take there.
    """

    samples: tuple[str, ...]
    cache: str
    nbytes: int


def needs_of(splits: Iterable[Split], cache: Path, size: int) -> Needs:
    """What trials on these splits need; size: side of a decoded image in pixels."""
    sets = {(split.root, tuple(file.path for file in split.development)) for split in splits}
    samples = {
        str(root / paths[step * (len(paths) - 1) // (SAMPLES - 1)]) for root, paths in sets for step in range(SAMPLES)
    }
    return Needs(tuple(sorted(samples)), str(cache), sum(3 * size**2 * len(paths) for _, paths in sets))


def check_place(needs: Needs) -> None:
    """Look at the files and the folder from this machine; raises PlaceError with one line for what it lacks."""
    for sample in needs.samples:
        try:
            with open(sample, "rb") as stream:
                stream.read(1)
        except OSError as problem:
            raise PlaceError(f"cannot read {sample}: {problem.strerror}; mount the images there") from None
    cache = Path(needs.cache)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
        # sets that are there may be the ones asked for
        missing = needs.nbytes - sum(entry.nbytes for entry in ImageCache(cache).entries())
        free = shutil.disk_usage(cache).free
    except OSError as problem:
        raise PlaceError(
            f"cannot use the image cache {cache}: {problem.strerror}; make it writable, or set SCTUNE_HOME"
        ) from None
    if free < missing:
        raise PlaceError(
            f"the disk of the image cache {cache} has {free / 1e6:.0f} MB free, and the images need "
            f"{missing / 1e6:.0f} MB; free some, or set SCTUNE_HOME to a larger disk"
        )
