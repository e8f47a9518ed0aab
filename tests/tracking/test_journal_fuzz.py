"""A damaged journal or cursor costs the damaged lines, never the search: what is whole is read, in order."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from sctune.errors import TrackingError
from sctune.tracking.journal import Journal

EVENTS = [{"kind": "report", "study": "s", "trial": n, "step": 1, "time": n, "metrics": {"a": 1.0}} for n in range(5)]


def line(**changed: Any) -> bytes:
    return json.dumps({"format_version": 1, "seq": 2, "event": EVENTS[1], **changed}).encode() + b"\n"


LINES = {
    "a number in words": line(seq="2"),
    "no number": line(seq=None),
    "a number that is none": line(seq=math.nan),
    "an endless number": line(seq=math.inf),
    "half a number": line(seq=1.5),
    "a list": line(seq=[2]),
    "a negative number": line(seq=-2),
    "a huge number": line(seq=10**30),
    "5000 digits": b'{"seq": ' + b"9" * 5000 + b"}\n",
    "a version in words": line(format_version="9"),
    "no version": line(format_version=None),
    "an event in a list": line(event=[1]),
    "no event": b'{"format_version": 1, "seq": 2}\n',
    "bytes": b"\xff\x00\n",
    "zeros": b"\0" * 4096 + b"\n",
    "nested deeply": b"[" * 100_000 + b"\n",
    "only brackets": b"{}\n",
}
VALUES = ["", '"2"', "null", "NaN", "Infinity", "-1", "1.5", "1e400", "[1]", "{}"]
CURSORS = [b"", b"{", b"\xff", b"[1]", b"[" * 100_000, *(b'{"delivered": %s}' % value.encode() for value in VALUES)]


@pytest.mark.parametrize("case", LINES, ids=lambda case: case.replace(" ", "-"))
def test_a_damaged_line_is_left_out(tmp_path: Path, case: str) -> None:
    path = tmp_path / "tracking.jsonl"
    path.write_bytes(line(seq=1, event=EVENTS[0]) + LINES[case] + line(seq=3, event=EVENTS[2]))
    journal = Journal(path)
    assert journal.read(10) == ([EVENTS[0], EVENTS[2]], 3)
    journal.append([EVENTS[3]])
    assert journal.read(10)[1] == 4
    journal.mark_delivered(4)
    journal.close()
    assert Journal(path).delivered == 4


@pytest.mark.parametrize("content", CURSORS, ids=lambda content: repr(content)[2:20])
def test_a_damaged_cursor_sends_everything_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tracking.jsonl"
    path.write_bytes(line(seq=1, event=EVENTS[0]) + line())
    path.with_name("tracking.jsonl.cursor").write_bytes(content)
    assert Journal(path).read(10) == (EVENTS[:2], 2)


def test_any_damage_leaves_a_journal_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "tracking.jsonl"
    whole = b"".join(line(seq=n + 1, event=event) for n, event in enumerate(EVENTS))
    for seed in range(300):
        rng = random.Random(seed)
        content = bytearray(whole)
        for _ in range(rng.randint(1, 5)):
            place = rng.randrange(len(content))
            if rng.random() < 0.2:
                del content[place : place + rng.randint(1, 200)]
            else:
                content[place] ^= 1 << rng.randrange(8)
            content = content or bytearray(b"\n")
        path.write_bytes(bytes(content))
        path.with_name("tracking.jsonl.cursor").unlink(missing_ok=True)
        try:
            journal = Journal(path)
        except TrackingError as problem:
            assert "newer sctune" in str(problem)
            continue
        journal.append([EVENTS[0]])
        events, last = journal.read(10)
        assert events[-1] == EVENTS[0]
        assert last == journal.last
        journal.close()
