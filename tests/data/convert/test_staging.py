"""Nothing half-converted: kills, full disks and bad images leave no OUT, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

from sctune.data.catalog import open_dataset
from sctune.data.convert import prepare, verify
from sctune.data.manifest import MANIFEST, UNFINISHED
from sctune.errors import DataError

Maker = Callable[..., Path]
KILLED = """
import os, signal, sys
from pathlib import Path
from sctune.data.convert import prepare

def stop(done, total):
    if done >= 10:
        os.kill(os.getpid(), signal.SIGKILL)

prepare(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), allow_counts=True, progress=stop)
"""
LIMITED = """
import resource, sys
from pathlib import Path
from sctune.data.convert import prepare
from sctune.errors import SctuneError

resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    prepare("elpv", Path(sys.argv[1]), Path(sys.argv[2]), allow_counts=True)
except SctuneError as problem:
    sys.exit(f"{type(problem).__name__}: {problem}")
"""


def images_below(folder: Path) -> dict[str, tuple[int, int]]:
    """Path -> inode and time of writing."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*.png"))
    }


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def refused(raw: Path, out: Path, name: str = "elpv", group_split: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        prepare(name, raw, out, allow_counts=True, group_split=group_split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["elpv", "aitex"])
def test_a_killed_run_goes_on(name: str, raw_folders: dict[str, Path], tmp_path: Path) -> None:
    raw, out = raw_folders[name], tmp_path / "out"
    done = run(KILLED, name, raw, out)
    assert done.returncode == -signal.SIGKILL, done.stderr
    partial = tmp_path / "out.partial"
    assert not out.exists() and (partial / UNFINISHED).is_file() and not (partial / MANIFEST).exists()
    assert "is unfinished; run the same" in refused(partial, tmp_path / "other")
    for place in (partial, partial / "train"):
        with pytest.raises(DataError, match=r"is unfinished; run the same `sctune data prepare` command again"):
            open_dataset(str(place))
    with pytest.raises(DataError, match="is unfinished"):
        verify(partial)
    # as if it had been killed while it wrote
    (partial / "train" / "good" / "late.png.writing").write_bytes(b"\x89PNG")
    before = images_below(partial)
    assert before
    manifest = prepare(name, raw, out, allow_counts=True)
    assert not partial.exists()
    after = images_below(out)
    assert all(after[path] == state for path, state in before.items()), "finished files are not written again"
    assert manifest.files == prepare(name, raw, tmp_path / "straight", allow_counts=True).files
    assert verify(out).ok and verify(tmp_path / "straight").ok
    assert {path.name for path in out.iterdir()} <= {"train", "test", "ground_truth", MANIFEST}


def test_what_is_not_whole_or_not_up_to_date_is_made_again(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw, out = makers["elpv"](tmp_path / "raw"), tmp_path / "out"
    straight = {record.source: record for record in prepare("elpv", raw, tmp_path / "x", allow_counts=True).files}
    partial = tmp_path / "out.partial"
    run(KILLED, "elpv", raw, out)
    cut, changed = [record for record in straight.values() if (partial / record.path).exists()][:2]
    (partial / cut.path).write_bytes((partial / cut.path).read_bytes()[:30])
    content = (raw / "images" / "cell0040.png").read_bytes()
    (raw / changed.source).write_bytes(content)
    stale = partial / "test" / "blob" / "gone.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(content)
    made = {record.source: record for record in prepare("elpv", raw, out, allow_counts=True).files}
    assert made[cut.source] == cut
    assert (out / changed.path).read_bytes() == content
    assert not (out / "test" / "blob").exists()
    assert verify(out).ok


def test_an_unreadable_image_is_named_and_the_rest_stays(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw, out = makers["elpv"](tmp_path / "raw"), tmp_path / "out"
    bad = raw / "images" / "cell0031.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    text = refused(raw, out)
    assert str(bad) in text and "run the same command again, it goes on where it was" in text
    assert not out.exists() and images_below(tmp_path / "out.partial")
    bad.write_bytes(whole)
    prepare("elpv", raw, out, allow_counts=True)
    assert verify(out).ok


def test_an_unreadable_image_that_must_be_cut_is_named_before_anything_is_written(
    makers: dict[str, Maker], tmp_path: Path
) -> None:
    raw = makers["sdd"](tmp_path / "raw")
    bad = raw / "kos02" / "Part4.jpg"
    bad.write_bytes(bad.read_bytes()[:100])
    assert str(bad) in refused(raw, tmp_path / "out", "sdd")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_another_request_does_not_go_on_with_what_is_there(raw_folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(KILLED, "sdd", raw_folders["sdd"], out)
    before = images_below(tmp_path / "out.partial")
    assert before
    assert "was begun with another data set: sdd, now elpv; go on with that" in refused(raw_folders["elpv"], out)
    text = refused(raw_folders["sdd"], out, "sdd", group_split=True)
    assert "another options: allow_counts=True group_split=False, now allow_counts=True group_split=True" in text
    moved = tmp_path / "moved"
    moved.symlink_to(raw_folders["sdd"])
    assert f"another source: {raw_folders['sdd']}, now {moved}" in refused(moved, out, "sdd")
    assert images_below(tmp_path / "out.partial") == before


def test_an_existing_out_is_left_alone(raw_folders: dict[str, Path], tmp_path: Path) -> None:
    for place in (tmp_path / "folder", tmp_path / "file", tmp_path / "link"):
        if place.name == "folder":
            place.mkdir()
        elif place.name == "file":
            place.write_text("mine")
        else:
            place.symlink_to(tmp_path / "nowhere")
        assert refused(raw_folders["elpv"], place) == f"{place} exists; give a new folder or remove it"
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "mine.txt").write_text("mine")
    assert "is in the way and not from sctune" in refused(raw_folders["elpv"], tmp_path / "out")
    assert (tmp_path / "out.partial" / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link", "out.partial"]


def test_two_processes_do_not_write_the_same_folder(raw_folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    with FileLock(tmp_path / "out.partial" / ".lock"):
        assert "is being written by another process" in refused(raw_folders["elpv"], tmp_path / "out")
    prepare("elpv", raw_folders["elpv"], tmp_path / "out", allow_counts=True)


def test_places_that_cannot_be(makers: dict[str, Maker], raw_folders: dict[str, Path], tmp_path: Path) -> None:
    raw = makers["elpv"](tmp_path / "raw")
    assert "lies inside the raw folder" in refused(raw, raw / "prepared")
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(raw, tmp_path / "file" / "out")
    prepare("elpv", raw, tmp_path / "out", allow_counts=True)
    assert "is prepared already (manifest.json)" in refused(tmp_path / "out", tmp_path / "again")
    prepare("elpv", raw, tmp_path / "new" / "deep" / "out", allow_counts=True)
    assert sorted(path.name for path in raw.iterdir()) == ["images", "labels.csv"]


def test_a_file_that_the_system_refuses(makers: dict[str, Maker], tmp_path: Path) -> None:
    raw, out = makers["elpv"](tmp_path / "raw", cells=10), tmp_path / "out"
    Image.effect_noise((80, 80), 90).save(raw / "images" / "cell0004.png")
    done = run(LIMITED, raw, out)
    assert done.returncode == 1 and done.stderr.startswith("DataError: cannot write "), done.stderr
    assert "File too large" in done.stderr and done.stderr.count("\n") == 1
    assert not out.exists() and not list((tmp_path / "out.partial").rglob("*.writing"))
    prepare("elpv", raw, out, allow_counts=True)
    assert verify(out).ok


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own; needs root and the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a small file system here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    ("small_disk", "begun"), [("size=32k", False), ("size=1m,nr_inodes=24", True)], indirect=["small_disk"]
)
def test_a_full_disk(small_disk: Path, begun: bool, makers: dict[str, Maker], tmp_path: Path) -> None:
    raw = makers["mastcam"](tmp_path / "raw", side=64)
    out = small_disk / "out"
    text = refused(raw, out, "mastcam")
    assert text.startswith(f"not enough room on the disk of {out}.partial: about 0.")
    assert "MB more are needed" in text and "make room and run the same command again" in text
    assert not out.exists()
    # where the sizes tell beforehand, nothing is filled up
    assert bool(images_below(out.with_name("out.partial"))) is begun
    subprocess.run(["mount", "-o", "remount,size=4m,nr_inodes=400", str(small_disk)], check=True)
    prepare("mastcam", raw, out, allow_counts=True)
    assert verify(out).ok


class Reversed:
    """os.scandir with its entries in the opposite order."""

    real = staticmethod(os.scandir)

    def __init__(self, *arguments: Any) -> None:
        with self.real(*arguments) as entries:
            self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    def __enter__(self) -> Reversed:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[os.DirEntry[str]]:
        return self.entries

    def __next__(self) -> os.DirEntry[str]:
        return next(self.entries)

    def close(self) -> None:
        self.entries = iter(())


@pytest.mark.parametrize("name", ["mvtec", "sdd", "aitex", "elpv", "optical", "mastcam"])
def test_the_order_in_which_a_folder_is_listed_does_not_matter(
    name: str, raw_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = prepare(name, raw_folders[name], tmp_path / "straight", allow_counts=True)
    listdir = os.listdir
    monkeypatch.setattr(os, "scandir", Reversed)
    monkeypatch.setattr(os, "listdir", lambda place=".": sorted(listdir(place), reverse=True))
    turned = prepare(name, raw_folders[name], tmp_path / "turned", allow_counts=True)
    assert turned.files == straight.files
