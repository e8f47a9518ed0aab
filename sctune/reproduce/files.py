"""Files of a reproduced table: a digest of the data it was made from, and writing that leaves nothing half-done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from sctune.data.catalog import DataSet
from sctune.errors import ConfigError


def data_digest(data: DataSet) -> str:
    """The same exactly for the same list of images, labels and file sizes; no image is read.

    Another image of the same name and size to the byte goes unseen: reading all pixels would take minutes.
    """
    listed = [(f.path, f.label, f.kind, f.group, f.split, _size(data.root / f.path)) for f in data.files]
    return sha256(json.dumps(listed).encode()).hexdigest()


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        # whoever reads it names it
        return None


def replace_files(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write all files beside their places, then put them there; raises ConfigError with the one that cannot be.

    A writer is given the path to write to. Where one fails, none of the files is changed.
    """
    staged = {path: path.with_name(f".{os.getpid()}.{path.name}") for path in writers}
    at = next(iter(writers))
    try:
        for at, write in writers.items():
            refuse_folder(at)
            at.parent.mkdir(parents=True, exist_ok=True)
            write(staged[at])
        for at, ready in staged.items():
            os.replace(ready, at)
    except OSError as problem:
        raise ConfigError(
            f"cannot write {at}: {problem.strerror or problem}; mend that or give another --out, then run the same "
            "command again"
        ) from None
    finally:
        for left in staged.values():
            with suppress(OSError):
                left.unlink(missing_ok=True)


def refuse_folder(path: Path) -> None:
    """Raises ConfigError where a folder lies in a file's place."""
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder; remove it or give another --out")
