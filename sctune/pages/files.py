"""Files of the pages: written under another name first, so that nobody ever meets half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from sctune.errors import ConfigError


def replaced(folder: Path, makers: Mapping[str, Callable[[Path], None]], option: str) -> list[Path]:
    """Make files of these names in a folder, all of them or none; option: of the command, for the message.

    Raises ConfigError where the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".pages-") as staging:
            for name, make in makers.items():
                make(Path(staging) / name)
            for name in makers:
                os.replace(Path(staging) / name, folder / name)
    except OSError as problem:
        raise ConfigError(f"cannot write to {folder}: {problem.strerror}; give another place with {option}") from None
    return [folder / name for name in makers]


def check_writable(folder: Path, option: str) -> None:
    """ConfigError where the folder is none and cannot be made, before anything is computed; makes nothing."""
    place = folder
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}: {place} is no folder that can be written to; give another one")
