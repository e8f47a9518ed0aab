"""Files in verified parts: the same parcel for the same file, nothing used that is not what was sent, no full disk."""

from __future__ import annotations

import errno
import io
import shutil
from collections import namedtuple
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sctune.errors import PlaceError
from sctune.trial.published import parcel as parcels
from sctune.trial.published.carriers import DESCRIPTION, FOLDER, StorageCarrier, storage_fetcher
from sctune.trial.published.parcel import BrokenParcelError, Parcel, Part, pack, read_parcel, unpack

Usage = namedtuple("Usage", "total used free")
PART = 1000


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "PART_BYTES", PART)


def some_bytes(length: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 7, length, dtype=np.uint8).tobytes()


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def sent(content: bytes) -> tuple[Parcel, dict[str, bytes]]:
    held: dict[str, bytes] = {}
    made = pack(io.BytesIO(content), digest(content), lambda part, data: held.setdefault(part.name, data), {"a": 1})
    return made, held


def from_(held: dict[str, bytes]) -> Callable[[Part], bytes]:
    return lambda part: held[part.name]


@pytest.mark.parametrize("length", [1, PART - 1, PART, PART + 1, 5 * PART, 5 * PART + 17])
def test_what_arrives_is_what_was_sent(length: int, tmp_path: Path) -> None:
    content = some_bytes(length)
    parcel, held = sent(content)
    assert [part.raw for part in parcel.parts] == [PART] * (length // PART) + [length % PART] * (length % PART > 0)
    assert parcel.nbytes == length and parcel.stored_bytes == sum(map(len, held.values()))
    assert all(digest(data) == name for name, data in held.items())
    unpack(parcel, from_(held), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    assert sent(content) == (parcel, held), "the same file is the same parcel"
    assert read_parcel(parcel.model_dump_json()) == parcel


def test_a_flipped_byte_is_never_written(tmp_path: Path) -> None:
    parcel, held = sent(some_bytes(3 * PART))
    name = parcel.parts[1].name
    good = held[name]
    for place in (0, len(good) // 2, len(good) - 1):
        held[name] = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        with pytest.raises(BrokenParcelError, match=name[:12]):
            unpack(parcel, from_(held), tmp_path / "out")
        assert len((tmp_path / "out").read_bytes()) <= PART
    # a part that is whole, but another one: the parts are right, and the whole is not
    swapped = parcel.model_copy(update={"parts": (parcel.parts[0], parcel.parts[0], parcel.parts[2])})
    held[name] = good
    with pytest.raises(BrokenParcelError, match="does not hold"):
        unpack(swapped, from_(held), tmp_path / "out")


def test_what_was_wrong_on_the_way_is_fetched_again(tmp_path: Path) -> None:
    content = some_bytes(2 * PART)
    parcel, held = sent(content)
    calls: list[str] = []

    def once_wrong(part: Part) -> bytes:
        calls.append(part.name)
        return b"" if calls.count(part.name) == 1 else held[part.name]

    unpack(parcel, once_wrong, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content and len(calls) == 4


def test_a_file_that_changes_while_it_is_packed_is_told() -> None:
    with pytest.raises(PlaceError, match="changed meanwhile"):
        pack(io.BytesIO(b"now"), digest(b"then"), lambda part, data: None, {})


def test_too_little_disk_is_told_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parcel, held = sent(some_bytes(2 * PART))
    asked: list[str] = []
    need = 2 * PART + parcels.MARGIN

    def fetch(part: Part) -> bytes:
        asked.append(part.name)
        return held[part.name]

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, need - 1))
    with pytest.raises(PlaceError, match=r"needs \d+ MiB .* has 16 MiB free.*SCTUNE_HOME"):
        unpack(parcel, fetch, tmp_path / "out")
    assert not asked and not (tmp_path / "out").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, need))
    unpack(parcel, fetch, tmp_path / "out")


def test_a_disk_that_fills_up_on_the_way_is_told(tmp_path: Path) -> None:
    parcel, held = sent(some_bytes(2 * PART))

    def full(part: Part) -> bytes:
        if part == parcel.parts[1]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return held[part.name]

    with pytest.raises(PlaceError, match="free some, or set SCTUNE_HOME"):
        unpack(parcel, full, tmp_path / "out")


def test_a_stop_ends_it_between_two_parts(tmp_path: Path) -> None:
    parcel, held = sent(some_bytes(3 * PART))
    calls: list[int] = []

    def pause() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(parcel, from_(held), tmp_path / "out", pause)
    assert len((tmp_path / "out").read_bytes()) == PART


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"parts": []},
        {"name": "../../etc"},
        {"nbytes": 0},
        {"parts": [{"name": "0" * 64, "nbytes": 5, "raw": 2**40}]},
        {"more": 1},
    ],
)
def test_a_damaged_description_is_broken(change: dict[str, Any]) -> None:
    import json

    parcel, _ = sent(b"x")
    with pytest.raises(BrokenParcelError, match="description is damaged"):
        read_parcel(json.dumps(parcel.model_dump(mode="json") | change))


class Counted(StorageCarrier):
    """Counts what it writes."""

    def __init__(self, storage: str) -> None:
        super().__init__(storage)
        self.written: list[str] = []

    def _write(self, path: str, content: bytes) -> None:
        self.written.append(path.rpartition("/")[2])
        super()._write(path, content)


def test_the_storage_holds_a_file_once_for_all_studies(tmp_path: Path) -> None:
    content = some_bytes(3 * PART)
    first = Counted(str(tmp_path / "store" / "one"))
    parcel, there = first.send(io.BytesIO(content), digest(content), {"size": 3})
    assert not there and first.written == [*(part.name for part in parcel.parts), DESCRIPTION]
    second = Counted(str(tmp_path / "store" / "two"))
    again, there = second.send(io.BytesIO(content), digest(content), {"size": 3})
    assert there and again == parcel and not second.written
    folder = tmp_path / "store" / FOLDER / parcel.name
    assert sorted(path.name for path in folder.iterdir()) == sorted([DESCRIPTION, *(p.name for p in parcel.parts)])
    fetch = storage_fetcher(parcel, second.address(parcel)["storage"])
    unpack(parcel, fetch, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content

    # cut short, gone, or without a description: none of it is a parcel, and it is sent again
    part = folder / parcel.parts[0].name
    for harm in (lambda: part.write_bytes(b"x"), part.unlink, (folder / DESCRIPTION).unlink):
        harm()
        assert second.find(parcel.name) is None
        assert not second.send(io.BytesIO(content), digest(content), {"size": 3})[1]
        assert second.find(parcel.name) == parcel
    # a byte that is another one shows to who reads it, who asks for it anew
    part.write_bytes(bytes([part.read_bytes()[0] ^ 1]) + part.read_bytes()[1:])
    with pytest.raises(BrokenParcelError):
        unpack(parcel, fetch, tmp_path / "out")
    second.send(io.BytesIO(content), digest(content), {"size": 3}, anew=True)
    unpack(parcel, fetch, tmp_path / "out")
    part.unlink()
    with pytest.raises(BrokenParcelError, match="is gone from"):
        unpack(parcel, fetch, tmp_path / "out")


def test_what_a_study_published_is_noted(tmp_path: Path) -> None:
    carrier = StorageCarrier(str(tmp_path / "one"))
    assert carrier.noted("id") is None
    carrier.note("id", {"splits": ["a"]})
    assert StorageCarrier(str(tmp_path / "two")).noted("id") == {"splits": ["a"]}
    (tmp_path / FOLDER / "studies" / "id.json").write_text("{")
    assert carrier.noted("id") is None
