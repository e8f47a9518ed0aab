"""Which files of a folder are images, and what is left out of it: shared by data sets and by `predict`.

Links to folders are followed; a folder is listed once, and a link that leads back to what holds it is left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sctune.data.manifest import UNFINISHED, refuse_unfinished, unfinished_error
from sctune.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".npy")
"""File types that are read, in any case."""

SYSTEM_FOLDERS = frozenset(
    {
        "@eadir",
        ".@__thumb",
        ".thumbnails",
        "__macosx",
        "@recycle",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "lost+found",
        "system volume information",
    }
)
"""Folders that storage devices and systems make by themselves: thumbnails and waste. In lower case."""
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})

_BESIDE = frozenset(
    [
        ".txt",
        ".json",
        ".jsonl",
        ".xml",
        ".csv",
        ".tsv",
        ".yaml",
        ".yml",
        ".md",
        ".rst",
        ".log",
        ".html",
        ".ini",
        ".cfg",
        ".toml",
        ".py",
        ".sh",
    ]
)
"""Files that lie beside images as a rule; they are counted together."""

THUMBNAILS = "thumbnail or system folder(s)"
HIDDEN = "hidden or system file(s) and folder(s)"
LINKS = "linked folder(s) that lead back, or to what is listed already"
BROKEN = "link(s) that lead nowhere"
OTHER = "other file(s)"


@dataclass
class LeftOut:
    """What was met and not read: kind -> how many, and the first of them."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        self.first.setdefault(kind, name)

    def join(self, other: LeftOut, prefix: str = "") -> None:
        """Take in what was left out of a folder below; prefix: that folder's name."""
        self.counts += other.counts
        for kind, name in other.first.items():
            self.first.setdefault(kind, f"{prefix}{name}")

    def line(self, place: str) -> str | None:
        """One line for people, None where nothing was left out."""
        if not self.counts:
            return None
        parts = []
        for kind in sorted(self.counts, key=lambda kind: (kind == OTHER, kind)):
            name = self.first[kind]
            first = "" if kind.startswith(".") else f" ({name if name.isprintable() else ascii(name)})"
            parts.append(f"{self.counts[kind]} {kind}{first}")
        return f"{place}: left out {', '.join(parts)}; {read_types()} are read"


@dataclass(frozen=True)
class Level:
    """What lies directly in one folder. folders, files: sorted names; left_out: the rest."""

    folders: list[str]
    files: list[str]
    left_out: LeftOut


def read_types() -> str:
    """The file types that are read, for messages."""
    return ", ".join(suffix[1:] for suffix in SUFFIXES)


def is_system(name: str) -> bool:
    """Whether a folder of this name is hidden or made by a system: never images, never a class."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def level(folder: Path) -> Level:
    """Names of the folders and images directly below; raises DataError where the folder cannot be listed."""
    folders, files, left_out = [], [], LeftOut()
    for name, is_folder, _ in _entries(folder):
        if is_folder and not is_system(name):
            folders.append(name)
        elif not is_folder and _is_image(name):
            files.append(name)
        else:
            left_out.add(_kind(folder, name), name)
    return Level(folders, files, left_out)


def images_below(folder: Path, finished: bool = False) -> tuple[list[str], LeftOut]:
    """Sorted POSIX paths, relative to the folder, of all images in it and below, and what was left out.

    finished: refuse what `sctune data prepare` has not finished. Raises DataError for that, and for a folder that
    cannot be listed.
    """
    found = _Walk(folder, finished)
    return sorted(found.images), found.left_out


class _Walk:
    """One pass: first the folders that are really there, then the linked ones in the order of their names."""

    def __init__(self, root: Path, finished: bool) -> None:
        self.images: list[str] = []
        self.left_out = LeftOut()
        self._real = os.path.realpath(root)
        self._seen = {self._real}
        self._links: list[tuple[str, str]] = []
        self._finished = finished
        self._enter(root, "", self._real)
        while self._links:
            round_, self._links = sorted(self._links), []
            for name, holder in round_:
                real = os.path.realpath(root / name)
                if real in self._seen or _holds(real, self._real) or _holds(real, holder):
                    self.left_out.add(LINKS, name)
                    continue
                self._seen.add(real)
                self._enter(root / name, name, real)

    def _enter(self, place: Path, prefix: str, real: str) -> None:
        """List a folder and the real ones below. prefix: its path relative to the root; real: where it really is."""
        if self._finished:
            refuse_unfinished(place)
        todo = [(place, prefix, real)]
        while todo:
            place, prefix, real = todo.pop()
            for name, is_folder, is_link in _entries(place):
                path = f"{prefix}/{name}" if prefix else name
                if name == UNFINISHED and self._finished:
                    raise unfinished_error(place)
                if is_folder and not is_system(name):
                    below = os.path.join(real, name)
                    if is_link:
                        self._links.append((path, real))
                    elif below in self._seen:
                        self.left_out.add(LINKS, path)
                    else:
                        self._seen.add(below)
                        todo.append((place / name, path, below))
                elif not is_folder and _is_image(name):
                    self.images.append(path)
                else:
                    self.left_out.add(_kind(place, name), path)


def _holds(folder: str, place: str) -> bool:
    return PurePosixPath(place).is_relative_to(folder)


def _entries(folder: Path) -> Iterator[tuple[str, bool, bool]]:
    """(name, whether it is a folder, whether it is a link), sorted by name."""
    try:
        with os.scandir(folder) as found:
            rows = [(entry.name, _is_folder(entry), entry.is_symlink()) for entry in found]
    except OSError as problem:
        raise DataError(f"cannot list {problem.filename or folder}: {problem.strerror}") from None
    yield from sorted(rows)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _kind(place: Path, name: str) -> str:
    """Kind of what is neither an image nor a folder of images."""
    if name.lower() in SYSTEM_FOLDERS:
        return THUMBNAILS
    if name.startswith(".") or name.lower() in SYSTEM_FILES:
        return HIDDEN
    if not os.path.exists(place / name):
        return BROKEN
    suffix = PurePosixPath(name).suffix.lower()
    # a long or odd ending is no type of file
    known = suffix[1:].isalnum() and len(suffix) <= 6 and suffix.isascii()
    return suffix if known and suffix not in _BESIDE else OTHER
