"""Where checkpoints are kept: a folder or an object store by URI, and its troubles in one line."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from pyarrow import fs

from sctune.errors import CheckpointError, StorageError


def open_storage(storage: str) -> tuple[fs.FileSystem, str]:
    """File system and root path of a storage URI; raises CheckpointError for one that cannot be used."""
    try:
        system, root = fs.FileSystem.from_uri(storage)
    except (OSError, ValueError) as problem:
        raise CheckpointError(
            f"--storage-path {storage!r} cannot be used ({problem}); give an absolute folder or s3://BUCKET/PATH"
        ) from None
    return system, root.rstrip("/")


@contextmanager
def answering(storage: str) -> Iterator[None]:
    """What goes wrong with the storage inside becomes a StorageError of one line."""
    try:
        yield
    except OSError as problem:
        raise StorageError(
            f"the storage {storage} does not answer or refuses: {reason(problem)}; the same command works when it does"
        ) from None


def reason(problem: OSError) -> str:
    """A file system's own words in one line."""
    return " ".join(str(problem).split())[:300]


def probe(storage: str) -> None:
    """Write a small file under the URI and remove it. Raises OSError where that cannot be done."""
    system, root = open_storage(storage)
    system.create_dir(root, recursive=True)
    marker = f"{root}/.sctune-probe-{uuid.uuid4().hex}"
    with system.open_output_stream(marker) as stream:
        stream.write(b"sctune")
    system.delete_file(marker)
