"""Faults of one node where all nodes are one machine: Python reads this at the start of its workers (PYTHONPATH).

SCTUNE_PLANTED, JSON: "clock": seconds that the clock is ahead; "files": path -> the file that lies there in its place
(none, where that does not exist); "full": folder whose disk is full.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
import sys
import time
from typing import Any

PLANTED = json.loads(os.environ.get("SCTUNE_PLANTED", "{}"))


def plant_files(files: dict[str, str]) -> None:
    """Through what Python opens and looks at; C++ sees the machine as it is."""
    opened, looked = builtins.open, os.stat

    def there(path: Any) -> Any:
        return files.get(os.fsdecode(path), path) if isinstance(path, str | bytes | os.PathLike) else path

    builtins.open = io.open = lambda path, *more, **named: opened(there(path), *more, **named)  # type: ignore[assignment]
    os.stat = lambda path, *more, **named: looked(there(path), *more, **named)  # type: ignore[assignment]


def plant_full_disk(folder: str) -> None:
    usage = shutil.disk_usage

    def full(path: Any) -> Any:
        found = usage(path)
        return found._replace(free=0) if os.fsdecode(path) == folder else found

    shutil.disk_usage = full  # type: ignore[assignment]


def plant_clock(seconds: float) -> None:
    now = time.time
    time.time = lambda: now() + seconds


# Ray's own processes stay as they are
if any(word.endswith("default_worker.py") for word in sys.orig_argv):
    if "clock" in PLANTED:
        plant_clock(PLANTED["clock"])
    if "files" in PLANTED:
        plant_files(PLANTED["files"])
    if "full" in PLANTED:
        plant_full_disk(PLANTED["full"])
