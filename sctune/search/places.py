"""Where a study lies: its name, its folder, its checkpoints and its record, checked before anything is made."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from sctune.errors import StudyError
from sctune.search.options import SearchOptions
from sctune.search.study import list_studies, valid_name
from sctune.trial.checkpoint import open_storage


def free_name(options: SearchOptions, root: Path) -> str:
    """The study's name; StudyError where it is taken, or the study root cannot be written to."""
    stem = Path(options.space).stem
    name = valid_name(f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}" if options.name is None else options.name)
    if name in list_studies(root) or (root / name).exists():
        raise StudyError(f"study {name!r} exists in {root}; go on with `sctune resume {name}` or choose another --name")
    _check_writable(root, "--study-root")
    return name


def storage_uri(given: str | None, folder: Path) -> str:
    """URI or folder of the checkpoints of a study in `folder`; StudyError where it cannot be written to."""
    if given is None:
        return str(folder)
    if "://" in given:
        place, mark, query = given.partition("?")
        uri = f"{place.rstrip('/')}/{folder.name}{mark}{query}"
        open_storage(uri)
        return uri
    root = Path(given).expanduser().absolute()
    _check_writable(root, "--storage-path")
    return str(root / folder.name)


def database_url(url: str | None) -> str | None:
    """An Optuna storage URL whose SQLite file is absolute."""
    prefix = "sqlite:///"
    if url is None or not url.startswith(prefix):
        return url
    return prefix + str(Path(url.removeprefix(prefix)).expanduser().absolute())


def _check_writable(folder: Path, option: str) -> None:
    """Raises StudyError where the folder is none and cannot be made, or must not be written to; makes nothing."""
    place = folder
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise StudyError(f"{option} {folder}: {place} is no folder; give one that can be written to")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StudyError(f"{option} {folder}: no permission to write to {place}; give another folder")
