"""What a machine lacks is told in one line."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from sctune.config import Task, TrialConfig
from sctune.data.decode import Decoding
from sctune.data.images import ImageCache
from sctune.data.place import Needs, check_place, needs_of
from sctune.data.split import Split, split_for
from sctune.errors import PlaceError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def split(tiny: TrialConfig) -> Split:
    return split_for(tiny, Task(source=tiny.data.source))


@pytest.fixture
def needs(split: Split, tmp_path: Path) -> Needs:
    return needs_of([split, split], tmp_path / "cache", 32)


def test_a_machine_with_everything(needs: Needs, split: Split) -> None:
    assert needs.nbytes == 3 * 32**2 * len(split.development)
    assert len(needs.samples) == 3 and all(Path(sample).is_file() for sample in needs.samples)
    check_place(needs)


def test_images_that_are_not_there_or_cannot_be_read(needs: Needs, tmp_path: Path) -> None:
    for name, reason in (("gone.png", "No such file"), (".", "Is a directory")):
        with pytest.raises(PlaceError, match=f"{reason}.*; mount the images there"):
            check_place(replace(needs, samples=(*needs.samples, str(tmp_path / name))))


def test_a_cache_folder_that_cannot_be_made(needs: Needs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlaceError, match=r"cannot use the image cache .*Not a directory; make it writable"):
        check_place(replace(needs, cache=str(tmp_path / "file" / "cache")))


def test_a_full_disk_counts_unless_the_images_are_there_already(
    needs: Needs, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    with pytest.raises(PlaceError, match="0 MB free, and the images need"):
        check_place(needs)
    ImageCache(Path(needs.cache)).array(split.root, [file.path for file in split.development], Decoding(32))
    check_place(needs)
