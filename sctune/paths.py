"""Where sctune keeps things on this machine: one folder, set by SCTUNE_HOME, ~/.sctune otherwise."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Root of studies, image cache, tracking store and token; absolute, not created here."""
    return Path(os.environ.get("SCTUNE_HOME") or "~/.sctune").expanduser().absolute()


def use_own_folders() -> None:
    """Let libraries that keep files below HOME keep them in SCTUNE_HOME, where HOME takes none; makes nothing.

    What the environment names stays, and so does a torch cache that holds weights already, which need only be read.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    if "MPLCONFIGDIR" not in os.environ and not takes_files(settings / "matplotlib"):
        os.environ["MPLCONFIGDIR"] = str(home() / "matplotlib")
    weights = any((cache / "torch" / "hub" / "checkpoints").glob("*.pth"))
    if "TORCH_HOME" not in os.environ and not weights and not takes_files(cache / "torch"):
        os.environ["TORCH_HOME"] = str(home() / "torch")


def takes_files(folder: Path) -> bool:
    """Whether a folder can be written to, or made; makes nothing."""
    place = nearest_folder(folder)
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or what is nearest above it; it may be a file."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def studies_folder() -> Path:
    return home() / "studies"


def cache_folder() -> Path:
    return home() / "cache"


def cache_here(drivers: Path) -> Path:
    """The cache folder of the machine that this process runs on.

    Its own, where its environment names SCTUNE_HOME; else that of the driver, which may lie on a disk that both see.
    """
    return cache_folder() if os.environ.get("SCTUNE_HOME") else drivers
