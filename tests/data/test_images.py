"""The image cache: shared, keyed by content, safe under two builders and a kill, bounded, read-only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from sctune.data import images
from sctune.data.catalog import open_dataset
from sctune.data.decode import CorruptImageError, Decoding, decode_image
from sctune.data.images import ImageCache, check_images, data_digest, file_digest
from sctune.errors import DataError

BUILD = """
import os, sys, time
from pathlib import Path
from sctune.data import images
folder, root, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
decode = images.decode
def slow(path, decoding):
    time.sleep(pause)
    return decode(path, decoding)
images.decode = slow
print("ready", flush=True)
sys.stdin.readline()
found = images.ImageCache(folder).array(root, sorted(os.listdir(root)), images.Decoding(16))
print(int(found.array.sum()), os.stat(found.array.filename).st_ino)
"""


def make_images(root: Path, count: int = 12) -> list[str]:
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = [f"{number:02}.png" for number in range(count)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(root / name)
    return names


def builder(folder: Path, root: Path, pause: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(root), str(pause)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def test_rows_are_the_decoded_images(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in")
    found = ImageCache(tmp_path / "cache").array(tmp_path / "in", names[::-1], Decoding(16, "pad"))
    assert found.array.shape == (12, 16, 16, 3) and found.array.dtype == np.uint8 and found.skipped == ()
    assert sorted(found.index) == names
    for name in names:
        np.testing.assert_array_equal(
            found.array[found.index[name]], decode_image(tmp_path / "in" / name, Decoding(16, "pad"))
        )


def test_real_elpv_images() -> None:
    data = open_dataset("elpv")
    paths = [file.path for file in data.files[:3]]
    assert check_images(data.root, paths) == []
    first = decode_image(data.root / paths[0], Decoding(300))
    np.testing.assert_array_equal(first[..., 0], np.asarray(Image.open(data.root / paths[0])))


def test_the_array_is_mapped_and_read_only(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in")
    found = ImageCache(tmp_path / "cache").array(tmp_path / "in", names, Decoding(16))
    assert isinstance(found.array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found.array[0] = 0


def test_same_content_is_built_once_and_changes_are_seen(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in")
    make_images(tmp_path / "copy")
    cache = ImageCache(tmp_path / "cache")
    for root in ("in", "copy"):
        cache.array(tmp_path / root, names, Decoding(16))
        cache.array(tmp_path / root, names + names[:3], Decoding(16))
    assert len(cache.entries()) == 1
    Image.new("RGB", (20, 24), "red").save(tmp_path / "in" / names[4])
    changed = cache.array(tmp_path / "in", names, Decoding(16))
    assert len(cache.entries()) == 2
    assert (changed.array[changed.index[names[4]]] == [255, 0, 0]).all()
    cache.array(tmp_path / "in", names, Decoding(8))
    cache.array(tmp_path / "in", names, Decoding(16, "crop"))
    cache.array(tmp_path / "in", names[1:], Decoding(16))
    entries = cache.entries()
    assert len(entries) == 5 and {entry.size for entry in entries} == {8, 16}
    assert min(entry.images for entry in entries) == 11


def test_two_processes_build_one_set(tmp_path: Path) -> None:
    make_images(tmp_path / "in")
    processes = [builder(tmp_path / "cache", tmp_path / "in", 0.02) for _ in range(2)]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    # the same sum and the same file on disk: the second one waited and mapped the first one's
    assert outputs[0] == outputs[1] and [process.returncode for process in processes] == [0, 0]
    assert len(ImageCache(tmp_path / "cache").entries()) == 1


def test_a_killed_build_leaves_nothing_that_counts(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in")
    cache = ImageCache(tmp_path / "cache")
    process = builder(tmp_path / "cache", tmp_path / "in", 30)
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("*.tmp/images.npy")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = list((tmp_path / "cache").glob("*.tmp"))
    assert len(left) == 1 and cache.entries() == []
    found = cache.array(tmp_path / "in", names, Decoding(16))
    assert found.array[found.index[names[-1]]].any() and not left[0].exists()


def test_remains_of_another_killed_build_are_swept(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in")
    (tmp_path / "cache" / "feed.tmp").mkdir(parents=True)
    (tmp_path / "cache" / "beef.tmp").mkdir()
    (tmp_path / "cache" / "locks").mkdir()
    with FileLock(tmp_path / "cache" / "locks" / "beef.lock"):
        ImageCache(tmp_path / "cache").array(tmp_path / "in", names, Decoding(16))
    assert not (tmp_path / "cache" / "feed.tmp").exists()
    assert (tmp_path / "cache" / "beef.tmp").exists()  # its builder lives


def test_corrupt_images_are_named_or_skipped_and_counted(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in")
    (tmp_path / "in" / names[3]).write_bytes(b"no image")
    cache = ImageCache(tmp_path / "cache")
    with pytest.raises(CorruptImageError, match=names[3]):
        cache.array(tmp_path / "in", names, Decoding(16))
    assert cache.entries() == [] and not list((tmp_path / "cache").glob("*.tmp"))
    found = cache.array(tmp_path / "in", names, Decoding(16), skip_corrupt=True)
    assert found.skipped == (names[3],) and names[3] not in found.index and len(found.index) == 11
    np.testing.assert_array_equal(
        found.array[found.index[names[4]]], decode_image(tmp_path / "in" / names[4], Decoding(16))
    )
    assert cache.array(tmp_path / "in", names, Decoding(16), skip_corrupt=True).skipped == found.skipped
    # a set built with gaps must not pass for a whole one
    with pytest.raises(CorruptImageError, match=names[3]):
        cache.array(tmp_path / "in", names, Decoding(16))
    assert check_images(tmp_path / "in", names) == [names[3]]
    with pytest.raises(DataError, match="none of the 1 images"):
        cache.array(tmp_path / "in", [names[3]], Decoding(16), skip_corrupt=True)
    with pytest.raises(DataError, match=r"cannot read .*gone\.png"):
        cache.array(tmp_path / "in", ["gone.png"], Decoding(16), skip_corrupt=True)
    with pytest.raises(DataError, match="no images"):
        cache.array(tmp_path / "in", [], Decoding(16))


def test_a_folder_in_the_place_of_a_sets_notes_is_listed_and_removed(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache")
    cache.array(tmp_path / "in", make_images(tmp_path / "in"), Decoding(16))
    (entry,) = cache.entries()
    notes = tmp_path / "cache" / entry.key / "meta.json"
    notes.unlink()
    notes.mkdir()
    assert [(left.key, left.images) for left in cache.entries()] == [(entry.key, 0)]
    assert cache.clear() > 0 and cache.entries() == []


def test_the_least_recently_used_sets_go_first(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in")
    one = 12 * 16 * 16 * 3
    cache = ImageCache(tmp_path / "cache", limit_bytes=int(2.5 * one))
    for resize in ("stretch", "crop"):
        cache.array(tmp_path / "in", names, Decoding(16, resize))
    oldest, newest = cache.entries()
    for entry, age in ((oldest, 5000), (newest, 4000)):
        stamp = time.time() - age
        os.utime(tmp_path / "cache" / entry.key / "meta.json", (stamp, stamp))
    held = cache.array(tmp_path / "in", names, Decoding(16, "stretch"))  # used again: now the newest
    cache.array(tmp_path / "in", names, Decoding(16, "pad"))
    keys = {entry.key for entry in cache.entries()}
    assert len(keys) == 2 and oldest.key in keys and newest.key not in keys
    # all were used just now, so the bound gives way
    cache.array(tmp_path / "in", names, Decoding(16, "crop"))
    assert len(cache.entries()) == 3
    assert cache.clear() > 3 * one and cache.entries() == []
    assert held.array[0].any()  # who has it mapped keeps it


def test_a_set_being_built_is_not_cleared(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in")
    cache = ImageCache(tmp_path / "cache")
    cache.array(tmp_path / "in", names, Decoding(16))
    with FileLock(tmp_path / "cache" / "locks" / f"{cache.entries()[0].key}.lock"):
        assert cache.clear() == 0
    assert cache.clear() > 0


def test_only_what_is_old_or_too_much_is_cleared(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in")
    cache = ImageCache(tmp_path / "cache")
    for size in (16, 24, 32):
        cache.array(tmp_path / "in", names, Decoding(size))
    for age, entry in zip((300, 200, 100), cache.entries(), strict=True):
        moment = time.time() - age
        os.utime(tmp_path / "cache" / entry.key / "meta.json", (moment, moment))
    mapped = cache.array(tmp_path / "in", names, Decoding(16)).array
    # the smallest one was used just now
    assert [entry.size for entry in cache.entries()] == [24, 32, 16]
    volumes = {entry.size: entry.nbytes for entry in cache.entries()}
    assert cache.clear(older_than_s=1000) == 0
    assert cache.clear(older_than_s=150) == volumes[24]
    assert cache.clear(keep_bytes=volumes[16]) == volumes[32]
    assert cache.clear() == volumes[16]
    # whoever has it mapped keeps it, and whoever asks again gets it again
    assert (cache.array(tmp_path / "in", names, Decoding(16)).array == mapped).all()


def test_a_set_that_goes_between_two_looks_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = make_images(tmp_path / "in")
    cache = ImageCache(tmp_path / "cache")
    before = np.array(cache.array(tmp_path / "in", names, Decoding(16)).array)
    looked = images._read_meta

    def cleared_meanwhile(path: Path) -> dict[str, Any] | None:
        meta = looked(path)
        monkeypatch.setattr(images, "_read_meta", looked)
        assert ImageCache(tmp_path / "cache").clear() > 0
        return meta

    monkeypatch.setattr(images, "_read_meta", cleared_meanwhile)
    assert (cache.array(tmp_path / "in", names, Decoding(16)).array == before).all()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    names = make_images(tmp_path / "in")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot use the image cache") as caught:
        ImageCache(tmp_path / "file" / "cache").array(tmp_path / "in", names, Decoding(16))
    assert "\n" not in str(caught.value)


def test_digests_follow_content_and_names(tmp_path: Path) -> None:
    names = make_images(tmp_path)
    first = data_digest(tmp_path, names)
    assert first == data_digest(tmp_path, names[::-1]) != data_digest(tmp_path, names[1:])
    (tmp_path / names[0]).rename(tmp_path / "zz.png")
    assert data_digest(tmp_path, [*names[1:], "zz.png"]) != first
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abcd")
    assert file_digest(tmp_path / "abc").startswith("88d4266fd4e6338d")
