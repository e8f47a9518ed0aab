"""Looking into raw folders: archives that nest X/X, any case of names, hidden files of other systems, masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sctune.data import masks
from sctune.data.masks import Mask
from sctune.data.places import refuse_unprintable
from sctune.errors import DataError

DEPTH = 4
"""How many folders that hold nothing else are looked through for the raw layout."""


def folders(place: Path) -> list[Path]:
    """Sorted visible folders directly below; `__MACOSX` of archives is none."""
    return [entry for entry in _entries(place) if entry.is_dir() and entry.name != "__MACOSX"]


def files(place: Path, *suffixes: str) -> list[Path]:
    """Sorted visible files directly below that end in one of the suffixes, in any case.

    Raises DataError for names that no message of one line can hold.
    """
    found = [entry for entry in _entries(place) if entry.name.lower().endswith(suffixes) and entry.is_file()]
    for path in found:
        refuse_unprintable(str(path))
    return found


def child(place: Path, name: str) -> Path | None:
    """The folder `name` (any case) below place, or inside it when an archive has nested name/name."""
    found = next((folder for folder in folders(place) if folder.name.lower() == name.lower()), None)
    return unnested(found) if found else None


def unnested(place: Path) -> Path:
    """X for X, X/X for X/X, and so on."""
    while True:
        same = next((folder for folder in folders(place) if folder.name.lower() == place.name.lower()), None)
        if same is None:
            return place
        place = same


def find_root(place: Path, is_raw: Callable[[Path], bool]) -> Path | None:
    """Where the raw layout begins: the folder itself, or below it through folders that hold one folder only."""
    for _ in range(DEPTH):
        if is_raw(place):
            return place
        below = folders(place)
        if len(below) != 1:
            return None
        place = below[0]
    return None


def relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def read_mask(root: Path, names: Sequence[str], image: str, size: tuple[int, int], *, any_width: bool = False) -> Mask:
    """bool [H, W]: where any of the masks is not zero.

    image: whose masks they are; size: its (W, H); any_width: cut masks of another width, or fill them with zeros.
    Raises DataError, naming both files, for masks that cannot be read or have another size.
    """
    width, height = size
    joined = np.zeros((height, width), np.bool_)
    for name in names:
        marked = masks.read_mask(root / name)
        for side, has, wants in (("high", marked.shape[0], height), ("wide", marked.shape[1], width)):
            if has != wants and not (any_width and side == "wide"):
                text = f"{root / name} is {has} pixels {side}, its image {wants} ({root / image})"
                raise DataError(f"{text}; get both files again")
        shared = min(width, marked.shape[1])
        joined[:, :shared] |= marked[:, :shared]
    return joined


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _entries(place: Path) -> list[Path]:
    try:
        with os.scandir(place) as found:
            return [place / name for name in sorted(entry.name for entry in found) if not name.startswith(".")]
    except NotADirectoryError:
        return []
    except OSError as problem:
        raise DataError(f"cannot list {place}: {problem.strerror}") from None
