"""Features that are kept: computed once, whoever asks, and never a reason to fail."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

import numpy as np
import pytest

from sctune.methods.untrained import store
from sctune.methods.untrained.store import STORE, FeatureStore, Memory
from sctune.train.trainer import Trainer
from tests.methods.untrained_fits import fitted, reference

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
    compute, kept = Counted(), FeatureStore("a", (5,), True, tmp_path)
    twice = np.concatenate([IMAGES[:4], IMAGES[1:3]])
    expected = Counted()(twice)
    np.testing.assert_array_equal(kept.of(twice, compute), expected)
    assert compute.images == 4
    np.testing.assert_array_equal(kept.of(twice[::-1], compute), expected[::-1])
    assert compute.images == 4
    forget(monkeypatch)
    np.testing.assert_array_equal(FeatureStore("a", (5,), True, tmp_path).of(twice, compute), expected)
    assert compute.images == 4
    kept.of(IMAGES, compute)
    assert compute.images == 6
    assert kept.of(IMAGES[:0], compute).shape == (0, 5)


def test_another_network_or_another_way_knows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Counted()
    FeatureStore("a", (5,), True, tmp_path).of(IMAGES, compute)
    FeatureStore("b", (5,), True, tmp_path).of(IMAGES, compute)
    assert compute.images == 12
    forget(monkeypatch)
    FeatureStore("a", (5,), False, tmp_path).of(IMAGES, compute)
    # of another shape than the key promises
    FeatureStore("b", (1, 6), True, tmp_path).of(IMAGES, lambda images: compute(images)[:, None])
    assert compute.images == 24


@pytest.mark.parametrize("harm", ["text", "bytes", "folder", "table"])
def test_damage_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    compute, place = Counted(), tmp_path / STORE
    FeatureStore("a", (5,), True, tmp_path).of(IMAGES, compute)
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
        np.testing.assert_array_equal(FeatureStore("a", (5,), True, tmp_path).of(IMAGES, compute), Counted()(IMAGES))
        mended = harm != "folder"
        assert compute.images == 6 * (2 if mended else 1 + again)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written_to_keeps_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    kept = FeatureStore("a", (5,), True, tmp_path)
    np.testing.assert_array_equal(kept.of(IMAGES, Counted()), Counted()(IMAGES))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = FeatureStore("a", (5,), True, tmp_path / "file" / "cache")
    np.testing.assert_array_equal(kept.of(IMAGES, Counted()), Counted()(IMAGES))


def test_the_file_stays_below_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_BYTES", 2**16)
    kept = FeatureStore("a", (2000,), True, tmp_path)
    for number in range(40):
        image = np.full((1, 8, 8, 3), number, np.uint8)
        kept.of(image, lambda images: np.zeros((len(images), 2000), np.float32))
    assert (tmp_path / STORE).stat().st_size < 2 * 2**16
    with sqlite3.connect(tmp_path / STORE) as base:
        (count,) = base.execute("SELECT COUNT(*) FROM features").fetchone()
    assert 2 <= count <= 9


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


def test_a_second_training_computes_no_feature(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fitted(reference(tiny, "gaussian"), tmp_path)
    forget(monkeypatch)
    monkeypatch.setenv("SCTUNE_HOME", str(tmp_path))
    again = Trainer(reference(tiny, "gaussian", method__components=2))
    monkeypatch.setattr(again.method, "_extract", lambda images, size: pytest.fail("a feature was computed again"))
    list(again.fit())
    images = first.selection.images
    np.testing.assert_array_equal(again.method.embed(images), first.method.embed(images))
    # another network, even if only a weight of it, is another key
    other = Trainer(reference(tiny, "gaussian", seed=3))
    with pytest.raises(AssertionError, match="asked"):
        monkeypatch.setattr(other.method, "_extract", _asked)
        list(other.fit())


def _asked(images: np.ndarray, size: int) -> np.ndarray:
    raise AssertionError("asked")
