"""Digests of files between runs: what is read again, what is not, and a store that cannot be used."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sctune.data import digests
from sctune.data.digests import STORE, data_digest, file_digests
from sctune.errors import DataError

Reads = list[str]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Names of files in `tmp_path / "in"`, one of them no UTF-8."""
    names = ["a.png", "b.png", "sub/c.png", os.fsdecode(b"\xff.png")]
    for number, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(bytes([number]) * 10)
    return names


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Names of the files that are read; files count as settled at once."""
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**12))
    seen: Reads = []
    read = digests._read

    def watched(place: str) -> str:
        seen.append(Path(place).name)
        return read(place)

    monkeypatch.setattr(digests, "_read", watched)
    return seen


@pytest.fixture
def another_process(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what this process knows, and what was read so far."""

    def forget() -> None:
        reads.clear()
        monkeypatch.setattr(digests, "_seen", {})

    forget()
    return forget


def hashed(root: Path, names: list[str]) -> dict[str, str]:
    return {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in sorted(names)}


def test_unchanged_files_are_read_once(
    files: list[str], reads: Reads, another_process: Callable[[], None], tmp_path: Path
) -> None:
    root, store = tmp_path / "in", tmp_path / "cache"
    assert file_digests(root, files, store) == hashed(root, files) and len(reads) == 4
    assert file_digests(root, files, store) == hashed(root, files) and len(reads) == 4
    another_process()
    assert file_digests(root, files[::-1], store) == hashed(root, files) and reads == []
    # another one of the same size and times, in its place
    before = (root / "a.png").stat()
    (root / "a.png").write_bytes(b"x" * 10)
    os.utime(root / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    another_process()
    assert file_digests(root, files, store) == hashed(root, files) and reads == ["a.png"]
    another_process()
    assert file_digests(root, files, store) == hashed(root, files) and reads == []


def test_a_file_of_a_moment_ago_is_read_again(files: list[str], tmp_path: Path) -> None:
    """Written twice within one tick of the clock it would look the same."""
    root, store = tmp_path / "in", tmp_path / "cache"
    for content in (b"1" * 10, b"2" * 10, b"3" * 10):
        (root / "b.png").write_bytes(content)
        assert file_digests(root, files, store)["b.png"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"", b"no database", None, "folder", "table"])
def test_a_store_that_is_none_does_no_harm(
    files: list[str], reads: Reads, another_process: Callable[[], None], tmp_path: Path, content: bytes | str | None
) -> None:
    root, store = tmp_path / "in", tmp_path / "cache"
    store.mkdir()
    if content == "folder":
        (store / STORE).mkdir()
    elif content == "table":
        base = sqlite3.connect(store / STORE)
        base.execute("CREATE TABLE digests (path BLOB)")
        base.commit()
        base.close()
    elif isinstance(content, bytes):
        (store / STORE).write_bytes(content)
    assert file_digests(root, files, store) == hashed(root, files)
    another_process()
    assert file_digests(root, files, store) == hashed(root, files)
    # where it could be made anew it works
    assert len(reads) == (4 if isinstance(content, str) else 0)


def test_a_damaged_store_is_made_anew(
    files: list[str], reads: Reads, another_process: Callable[[], None], tmp_path: Path
) -> None:
    root, store = tmp_path / "in", tmp_path / "cache"
    file_digests(root, files, store)
    whole = (store / STORE).read_bytes()
    (store / STORE).write_bytes(whole[:100] + b"\xa5" * (len(whole) - 100))
    another_process()
    assert file_digests(root, files, store) == hashed(root, files) and len(reads) == 4
    another_process()
    assert file_digests(root, files, store) == hashed(root, files) and reads == []


def test_a_place_that_takes_no_store(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "in"
    assert file_digests(root, files, tmp_path / "file" / "cache") == hashed(root, files)


def test_what_is_not_used_is_forgotten(
    files: list[str],
    reads: Reads,
    another_process: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, store = tmp_path / "in", tmp_path / "cache"

    def kept() -> list[str]:
        base = sqlite3.connect(store / STORE)
        found = sorted(Path(os.fsdecode(path)).name for (path,) in base.execute("SELECT path FROM digests"))
        base.close()
        return found

    monkeypatch.setattr(digests, "_today", lambda: 1000)
    file_digests(root, ["a.png", "b.png"], store)
    another_process()
    monkeypatch.setattr(digests, "_today", lambda: 1000 + digests.FORGET_DAYS)
    file_digests(root, ["b.png"], store)
    monkeypatch.setattr(digests, "_today", lambda: 1001 + digests.FORGET_DAYS)
    file_digests(root, ["sub/c.png"], store)
    assert kept() == ["b.png", "c.png"]
    monkeypatch.setattr(digests, "MAX_FILES", 1)
    file_digests(root, ["a.png", "sub/c.png"], store)
    assert len(kept()) == 1 and kept() != ["b.png"]


def test_threads_and_processes_share_it(files: list[str], reads: Reads, tmp_path: Path) -> None:
    root, store = tmp_path / "in", tmp_path / "cache"
    for number in range(60):
        (root / f"{number}.png").write_bytes(os.urandom(20))
    names = [*files, *(f"{number}.png" for number in range(60))]
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda part: found.append(data_digest(root, part, store)), args=(names,))
        for _ in range(4)
    ]
    spawn = multiprocessing.get_context("spawn")  # a fork beside running threads may copy a lock that one of them holds
    processes = [spawn.Process(target=data_digest, args=(root, names[n::3], store)) for n in range(3)]
    for one in [*threads, *processes]:
        one.start()
    for one in [*threads, *processes]:
        one.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert found == [data_digest(root, names, tmp_path / "other")] * 4


def test_a_file_that_is_gone_is_named(files: list[str], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "in" / "sub")
    with pytest.raises(DataError, match=r"cannot read .*sub/c\.png: No such file"):
        file_digests(tmp_path / "in", files, tmp_path / "cache")
