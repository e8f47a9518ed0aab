"""Where sctune keeps things on this machine: one folder, set by SCTUNE_HOME, ~/.sctune otherwise."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Root of studies, image cache, tracking store and token; absolute, not created here."""
    return Path(os.environ.get("SCTUNE_HOME") or "~/.sctune").expanduser().absolute()


def studies_folder() -> Path:
    return home() / "studies"


def cache_folder() -> Path:
    return home() / "cache"
