"""Whether the directories of a TIFF file lie in the file: looked at before tifffile, which believes what they say.

A damaged count of a tag would keep it reading, and taking memory, for minutes. Classic TIFF and BigTIFF.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_DIRECTORIES = 10_000
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by the number of its type (TIFF 6.0, section 2; BigTIFF)."""


class _Form(NamedTuple):
    """Letters of `struct`: order of bytes, number of entries, an offset, and an entry's count; bytes of an entry."""

    order: str
    entries: str
    offset: str
    entry: int


def is_whole(content: bytes) -> bool:
    """Whether every directory, and every value that one points to, ends before the file does."""
    order = "<" if content[:1] == b"I" else ">"
    is_big = content[2:4] in (b"+\0", b"\0+")
    form = _Form(order, "Q", "Q", 20) if is_big else _Form(order, "H", "I", 12)
    try:
        return _are_whole(content, form, 8 if is_big else 4)
    except struct.error:  # the head of a directory is cut off
        return False


def _are_whole(content: bytes, form: _Form, start: int) -> bool:
    seen: set[int] = set()
    (place,) = struct.unpack_from(form.order + form.offset, content, start)
    while place and place not in seen and len(seen) < MOST_DIRECTORIES:
        seen.add(place)
        (entries,) = struct.unpack_from(form.order + form.entries, content, place)
        first = place + struct.calcsize(form.order + form.entries)
        after = first + entries * form.entry
        if after > len(content) or not all(_fits(content, form, at) for at in range(first, after, form.entry)):
            return False
        (place,) = struct.unpack_from(form.order + form.offset, content, after)
    return bool(seen) and not place


def _fits(content: bytes, form: _Form, at: int) -> bool:
    kind, count = struct.unpack_from(f"{form.order}2xH{form.offset}", content, at)
    size = _SIZES.get(kind, 1) * count
    within = struct.calcsize(form.order + form.offset)
    if size <= within:
        return True
    (place,) = struct.unpack_from(form.order + form.offset, content, at + 4 + within)
    return bool(place + size <= len(content))
