"""Features that are kept: computed once, whoever asks, and never a reason to fail."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sctune.config import TrialConfig
from sctune.methods.untrained import store
from sctune.methods.untrained.store import CELLS, POOLED, FeatureStore, Memory, Place
from sctune.paths import cache_folder
from sctune.train.trainer import Trainer
from tests.methods.untrained_fits import CELLS as CELL_GAUSSIAN
from tests.methods.untrained_fits import fitted, reference

HERE = Place("kept.sqlite", 2**20)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)


class Counted:
    """Features that are made of pixels, and how many images they were made of."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.images += len(images)
        return images.reshape(len(images), -1)[:, :5].astype(np.float32) + 1


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    forget(monkeypatch)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_memory", Memory(store.MEMORY_BYTES))


def test_each_image_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, kept = Counted(), FeatureStore("a", (5,), HERE, tmp_path)
    twice = np.concatenate([IMAGES[:4], IMAGES[1:3]])
    expected = Counted()(twice)
    np.testing.assert_array_equal(kept.of(twice, compute), expected)
    assert compute.images == 4
    np.testing.assert_array_equal(kept.of(twice[::-1], compute), expected[::-1])
    assert compute.images == 4
    forget(monkeypatch)
    np.testing.assert_array_equal(FeatureStore("a", (5,), HERE, tmp_path).of(twice, compute), expected)
    assert compute.images == 4
    kept.of(IMAGES, compute)
    assert compute.images == 6
    assert kept.of(IMAGES[:0], compute).shape == (0, 5)


def test_another_network_or_another_way_knows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Counted()
    FeatureStore("a", (5,), HERE, tmp_path).of(IMAGES, compute)
    FeatureStore("b", (5,), HERE, tmp_path).of(IMAGES, compute)
    assert compute.images == 12
    forget(monkeypatch)
    FeatureStore("a", (5,), None, tmp_path).of(IMAGES, compute)
    # of another shape than the key promises
    FeatureStore("b", (1, 6), HERE, tmp_path).of(IMAGES, lambda images: compute(images)[:, None])
    assert compute.images == 24


@pytest.mark.parametrize("harm", ["text", "bytes", "folder", "table"])
def test_damage_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    compute, place = Counted(), tmp_path / HERE.name
    FeatureStore("a", (5,), HERE, tmp_path).of(IMAGES, compute)
    if harm == "text":
        place.write_text("no database " * 500)
    elif harm == "bytes":
        with sqlite3.connect(place) as base:
            base.execute("UPDATE features SET value = zeroblob(LENGTH(value))")
            base.execute("UPDATE features SET value = NULL WHERE rowid = 1")
    elif harm == "table":
        with sqlite3.connect(place) as base:
            base.execute("DROP TABLE features")
    else:
        place.unlink()
        place.mkdir()
    for again in (1, 2):
        forget(monkeypatch)
        np.testing.assert_array_equal(FeatureStore("a", (5,), HERE, tmp_path).of(IMAGES, compute), Counted()(IMAGES))
        mended = harm != "folder"
        assert compute.images == 6 * (2 if mended else 1 + again)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_to_keeps_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    kept = FeatureStore("a", (5,), HERE, tmp_path)
    np.testing.assert_array_equal(kept.of(IMAGES, Counted()), Counted()(IMAGES))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = FeatureStore("a", (5,), HERE, tmp_path / "file" / "cache")
    np.testing.assert_array_equal(kept.of(IMAGES, Counted()), Counted()(IMAGES))


def rows_in(folder: Path, place: Place) -> int:
    with sqlite3.connect(folder / place.name) as base:
        (count,) = base.execute("SELECT COUNT(*) FROM features").fetchone()
    return int(count)


def test_the_file_stays_below_its_bound(tmp_path: Path) -> None:
    small = Place("kept.sqlite", 2**16)
    kept = FeatureStore("a", (2000,), small, tmp_path)
    for number in range(40):
        image = np.full((1, 8, 8, 3), number, np.uint8)
        kept.of(image, lambda images: np.zeros((len(images), 2000), np.float32))
    assert (tmp_path / small.name).stat().st_size < 2 * 2**16
    assert 2 <= rows_in(tmp_path, small) <= 9


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first image is written first and read every hour, so that it stays when others go."""
    small, made = Place("kept.sqlite", 2**16), []

    def compute(images: np.ndarray) -> np.ndarray:
        made.extend(images[:, 0, 0, 0].tolist())
        return np.repeat(images[:, 0, 0, :1].astype(np.float32), 2000, axis=1)

    for hour in range(30):
        forget(monkeypatch)
        monkeypatch.setattr(store, "_hour", lambda hour=hour: hour)
        images = np.zeros((2, 8, 8, 3), np.uint8)
        images[1] = hour + 1
        FeatureStore("a", (2000,), small, tmp_path).of(images, compute)
    assert made == list(range(31)) and rows_in(tmp_path, small) < 9


def test_more_than_half_of_a_file_is_not_kept() -> None:
    assert Place("x", 800).takes(100, 4) and not Place("x", 799).takes(100, 4)
    # ELPV's and MVTec AD's images at 160 px, EfficientNet-Lite0's maps at strides 8 and 16
    size = 4 * (40 * 20 * 20 + 112 * 10 * 10)
    assert CELLS.takes(5354, size) and not POOLED.takes(5354, size) and not CELLS.takes(10_000, size)


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=store.SPARE_BYTES - 1))
    np.testing.assert_array_equal(FeatureStore("a", (5,), HERE, tmp_path).of(IMAGES, Counted()), Counted()(IMAGES))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_meanwhile_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = store._Disk._open

    def full(disk: store._Disk) -> sqlite3.Connection:
        base = opened(disk)
        base.execute("PRAGMA max_page_count = 6")
        return base

    monkeypatch.setattr(store._Disk, "_open", full)
    wide = FeatureStore("a", (900,), HERE, tmp_path)
    tall = np.repeat(IMAGES, 5, axis=1)[:, :, :8]
    for one in tall:
        found = wide.of(one[None], lambda images: images.reshape(len(images), -1)[:, :900].astype(np.float32))
        np.testing.assert_array_equal(found[0], one.reshape(-1)[:900])
    with sqlite3.connect(tmp_path / HERE.name) as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert 0 < rows_in(tmp_path, HERE) < len(tall)


def test_several_writers_at_once(tmp_path: Path) -> None:
    """Each process has some images of its own and some that all have."""
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from sctune.methods.untrained.store import FeatureStore, Place\n"
        "kept = FeatureStore('a', (300,), Place('kept.sqlite', 2**24), Path(sys.argv[1]))\n"
        "for number in [*range(20), *range(100 + 20 * int(sys.argv[2]), 120 + 20 * int(sys.argv[2]))]:\n"
        "    kept.of(np.full((1, 8, 8, 3), number, np.uint8), lambda images: np.full((1, 300), number, np.float32))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(one)]) for one in range(3)]
    assert [one.wait(60) for one in running] == [0, 0, 0]
    numbers = [*range(20), *range(100, 160)]
    images = np.stack([np.full((8, 8, 3), number, np.uint8) for number in numbers])
    again = FeatureStore("a", (300,), Place("kept.sqlite", 2**24), tmp_path)
    found = again.of(images, lambda images: pytest.fail("one was not kept"))
    np.testing.assert_array_equal(found, np.repeat(np.array(numbers, np.float32)[:, None], 300, axis=1))


def test_memory_forgets_what_was_used_longest_ago() -> None:
    memory = Memory(limit=3 * 40)
    for name in (b"a", b"b", b"c"):
        memory.add(name, np.zeros(10, np.float32))
    assert memory.find(b"a") is not None
    memory.add(b"d", np.zeros(10, np.float32))
    memory.add(b"d", np.ones(10, np.float32))
    assert memory.find(b"b") is None and memory.find(b"a") is not None and memory.held == 120
    memory.add(b"large", np.zeros(31, np.float32))
    assert memory.held == 0


@pytest.mark.parametrize("name", ["gaussian", "patch_bank", CELL_GAUSSIAN])
def test_a_second_training_computes_no_feature(
    tiny: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first = fitted(reference(tiny, name), tmp_path)
    forget(monkeypatch)
    monkeypatch.setenv("SCTUNE_HOME", str(tmp_path))
    place = POOLED if name == "gaussian" else CELLS
    assert [one for one in (POOLED, CELLS) if (cache_folder() / one.name).exists()] == [place]
    assert rows_in(cache_folder(), place) > 40
    again = Trainer(reference(tiny, name))
    extract = again.method._extract  # type: ignore[attr-defined]
    monkeypatch.setattr(again.method, "_extract", lambda images, size: pytest.fail("a feature was computed again"))
    list(again.fit())
    images = first.selection.images
    np.testing.assert_array_equal(again.method.embed(images), first.method.embed(images))
    # what is read and what is computed gives the same fit and the same scores, bit for bit
    own, other = first.method.model_state(), again.method.model_state()
    assert own.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in own.items())
    scores = again.method.score(images)
    np.testing.assert_array_equal(scores, first.method.score(images))
    monkeypatch.setattr(again.method, "_extract", extract)
    monkeypatch.setattr(again.method, "_store", None)
    np.testing.assert_array_equal(again.method.score(images), scores)


def test_another_weight_is_another_key(tiny: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted(reference(tiny, "gaussian"), tmp_path)
    monkeypatch.setenv("SCTUNE_HOME", str(tmp_path))
    other = Trainer(reference(tiny, "gaussian", seed=3))
    with pytest.raises(AssertionError, match="asked"):
        monkeypatch.setattr(other.method, "_extract", _asked)
        list(other.fit())


def _asked(images: np.ndarray, size: int) -> np.ndarray:
    raise AssertionError("asked")
