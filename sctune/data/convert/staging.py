"""The folder in which a data set is prepared: next to its place, resumable, published by one rename."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sctune.data.manifest import MANIFEST, UNFINISHED, Manifest, parse_manifest
from sctune.errors import DataError

PARTIAL = ".partial"
"""OUT.partial holds the work until it is whole."""
LOCK = ".lock"
WRITING = ".writing"
"""End of the name of a file that is being written."""
FULL = (errno.ENOSPC, errno.EDQUOT)
AGAIN = "run the same command again, it goes on where it was"


def write_atomically(path: Path, content: bytes) -> None:
    """A file is there as a whole or not at all, whenever the process is killed."""
    unfinished = path.with_name(path.name + WRITING)
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise


def staging_folder(out: Path) -> Path:
    return out.with_name(out.name + PARTIAL)


def refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise DataError(f"{out} exists; give a new folder or remove it")


@contextmanager
def staged(out: Path, begun: Manifest) -> Iterator[Path]:
    """The staging folder of `out`, locked; it stays when the block fails, so that a later run goes on.

    begun: the manifest so far, without files. Raises DataError where another source or other options were begun, and
    while another process works on it.
    """
    folder = staging_folder(out)
    with writing_errors(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise DataError(
                f"{folder} is being written by another process; wait for it, or give another --out"
            ) from None
    try:
        with writing_errors(folder, 0):
            _check_begun(folder, begun)
            write_atomically(folder / UNFINISHED, begun.to_json().encode())
        yield folder
    finally:
        lock.release()


def publish(folder: Path, out: Path, manifest: Manifest) -> None:
    """Leave only what the manifest names, write it, and give the folder its name: the last step, and a rename."""
    with writing_errors(folder, 0):
        refuse_existing(out)
        _sweep(folder, _named(manifest))
        write_atomically(folder / MANIFEST, manifest.to_json().encode())
        (folder / UNFINISHED).unlink()
        (folder / LOCK).unlink(missing_ok=True)
        folder.rename(out)


@contextmanager
def writing_errors(folder: Path, missing_bytes: int) -> Iterator[None]:
    """Turn what the operating system refuses into one line with the way out; missing_bytes: what is still to come."""
    try:
        yield
    except OSError as problem:
        if problem.errno in FULL:
            raise full_disk(folder, missing_bytes) from None
        raise DataError(
            f"cannot write {problem.filename or folder}: {problem.strerror}; when that is solved, {AGAIN}"
        ) from None


def full_disk(folder: Path, missing_bytes: int) -> DataError:
    need = f"about {size_text(missing_bytes)} more are needed, " if missing_bytes else ""
    free = size_text(free_bytes(folder))
    return DataError(f"not enough room on the disk of {folder}: {need}{free} are free; make room and {AGAIN}")


def free_bytes(folder: Path) -> int:
    """Free space where the folder is, or will be."""
    place = folder
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def size_text(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.2f} MB"


def _check_begun(folder: Path, begun: Manifest) -> None:
    state = next((folder / name for name in (UNFINISHED, MANIFEST) if (folder / name).is_file()), None)
    if state is None:
        if any(entry.name != LOCK for entry in folder.iterdir()):
            raise DataError(f"{folder} is in the way and not from sctune; remove it, or give another --out")
        return
    other = parse_manifest(state.read_text(encoding="utf-8"), state)
    for what, was, wanted in (
        ("data set", other.data_set, begun.data_set),
        ("source", other.source, begun.source),
        ("options", str(other.options), str(begun.options)),
    ):
        if was != wanted:
            raise DataError(
                f"{folder} was begun with another {what}: {was}, now {wanted}; go on with that, or remove the folder"
            )


def _named(manifest: Manifest) -> set[str]:
    masks = (record.mask for record in manifest.files if record.mask)
    return {*(record.path for record in manifest.files), *masks, UNFINISHED, LOCK}


def _sweep(folder: Path, named: Iterable[str]) -> None:
    """Remove what killed runs left, and files of raw images that are no longer there."""
    keep = set(named)
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(place) / name
            if path.relative_to(folder).as_posix() not in keep:
                path.unlink()
        with suppress(OSError):
            if Path(place) != folder:
                Path(place).rmdir()
