"""A file in parts that are compressed and verified one by one, so that nobody holds more than one of them.

Parcels and parts are named by what they hold: the same file makes the same parcel, and two drivers that publish it at
once write the same bytes under the same names.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sctune.errors import PlaceError, SctuneError
from sctune.files import is_disk_full

PART_BYTES = 64 * 2**20
"""Of the file in a part; the last one may have fewer."""

MARGIN = 16 * 2**20
"""Bytes that stay free on a disk which takes a file."""

TRIES = 3
"""Times that a part is fetched before it is called damaged: what was wrong on the way comes right the next time."""

_CODEC = pa.Codec("zstd", compression_level=1)
Name = Field(pattern="^[0-9a-f]{64}$")


class BrokenParcelError(SctuneError):
    """What was published is not what it says it is, or parts of it are gone; it can be published again."""


class Part(BaseModel):
    """name: SHA-256 of the stored, compressed bytes; nbytes: how many there are; raw: bytes of the file in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Name
    nbytes: int = Field(ge=1)
    raw: int = Field(ge=1, le=PART_BYTES)


class Parcel(BaseModel):
    """name: SHA-256 of the file; nbytes: its length; about: what goes with it, as plain values."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Literal[1] = 1
    name: str = Name
    nbytes: int = Field(ge=1)
    parts: tuple[Part, ...] = Field(min_length=1, strict=False)
    about: dict[str, Any] = {}

    @property
    def stored_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def read_parcel(text: str | bytes) -> Parcel:
    """From JSON; raises BrokenParcelError for what is none of this version."""
    try:
        return Parcel.model_validate_json(text)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BrokenParcelError(f"its description is damaged: {place}: {first['msg']}") from None


def pack(stream: BinaryIO, name: str, send: Callable[[Part, bytes], None], about: dict[str, Any]) -> Parcel:
    """Cut a file and send its parts one after the other; raises PlaceError where it does not hold what `name` says."""
    whole, parts, length = sha256(), [], 0
    while chunk := stream.read(PART_BYTES):
        whole.update(chunk)
        length += len(chunk)
        packed: bytes = _CODEC.compress(chunk, asbytes=True)
        parts.append(Part(name=sha256(packed).hexdigest(), nbytes=len(packed), raw=len(chunk)))
        send(parts[-1], packed)
    if whole.hexdigest() != name:
        raise PlaceError(
            f"a file to be published changed meanwhile: it holds {whole.hexdigest()[:12]}, not {name[:12]}"
        )
    return Parcel(name=name, nbytes=length, parts=tuple(parts), about=about)


def unpack(
    parcel: Parcel,
    fetch: Callable[[Part], bytes],
    target: Path,
    pause: Callable[[], None] = lambda: None,
    folder: Path | None = None,
) -> None:
    """Write the file to `target`, each part verified before it is written, and the whole at the end.

    fetch: gives a part's bytes; raises BrokenParcelError where they are gone. pause: called before each part; may
    raise. folder: what messages call the place; default: the target's. Raises BrokenParcelError for bytes that are not
    those of the parcel, PlaceError where the disk has no room.
    What is left at `target` then is of no use.
    """
    folder = folder or target.parent
    check_room(folder, parcel.nbytes)
    whole = sha256()
    with _room(folder, parcel.nbytes), target.open("wb") as out:
        for part in parcel.parts:
            pause()
            chunk = _verified(part, fetch)
            whole.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if whole.hexdigest() != parcel.name:
        raise BrokenParcelError(f"parcel {parcel.name[:12]} does not hold what its name says")


def parts_of(parcel: Parcel, fetch: Callable[[Part], bytes]) -> Iterator[bytes]:
    """The file's bytes, part by part, each verified; for small ones. Raises BrokenParcelError."""
    for part in parcel.parts:
        yield _verified(part, fetch)


def check_room(folder: Path, nbytes: int) -> None:
    """Raises PlaceError where the disk of a folder has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < nbytes + MARGIN:
        raise _no_room(folder, nbytes, free)


@contextmanager
def _room(folder: Path, nbytes: int) -> Iterator[None]:
    """A disk that fills up inside, by whomever, becomes a PlaceError."""
    try:
        yield
    except OSError as problem:
        if not is_disk_full(problem) and problem.errno != errno.EFBIG:
            raise
        raise _no_room(folder, nbytes, shutil.disk_usage(folder).free) from None


def _no_room(folder: Path, nbytes: int, free: int) -> PlaceError:
    return PlaceError(
        f"the disk of {folder} needs {nbytes / 2**20:.0f} MiB for what the driver publishes, and has "
        f"{free / 2**20:.0f} MiB free; free some, or set SCTUNE_HOME to a larger disk"
    )


def _verified(part: Part, fetch: Callable[[Part], bytes]) -> bytes:
    for _ in range(TRIES):
        packed = fetch(part)
        if len(packed) == part.nbytes and sha256(packed).hexdigest() == part.name:
            chunk: bytes = _CODEC.decompress(packed, part.raw, asbytes=True)
            return chunk
    raise BrokenParcelError(f"part {part.name[:12]} is not what was published")
