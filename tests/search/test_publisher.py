"""What a driver hands to nodes that lack it, with the cluster's key-value store in this process: no Ray.

The image folder is gone before a node asks: nothing but what the driver published can have served it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from sctune.config import Task, TrialConfig
from sctune.data.decode import Decoding
from sctune.data.digests import data_digest
from sctune.data.images import CachedImages, ImageCache, set_key
from sctune.data.split import Split, split_for
from sctune.errors import ChangedDataError, ClusterError, DataError, PlaceError, StoppedError, StorageError
from sctune.files import file_sha256
from sctune.paths import cache_folder
from sctune.search.run import publisher as publishers
from sctune.search.run.publisher import Publisher
from sctune.search.study.content import content_digest, task_digests
from sctune.search.study.manifest import DataSpec, StudyManifest
from sctune.search.study.published import Notes, resumed_splits
from sctune.trial import building
from sctune.trial.building import TrainerBuilder, TrialSpec
from sctune.trial.published import carriers, parcel, requests
from sctune.trial.published.carriers import FOLDER, StorageCarrier
from sctune.trial.published.requests import asked
from sctune.trial.published.taking import Published, Taking
from tests.builders import FEW, make_manifest, make_space
from tests.conftest import make_folder

KEY = "sctune-publish:study:1"
SIZE = 64


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The cluster's key-value store."""
    held: dict[str, bytes] = {}
    monkeypatch.setattr(requests, "key_value", held.get)
    monkeypatch.setattr(requests, "set_key_value", held.__setitem__)
    monkeypatch.setattr(requests, "remove_key", lambda key: held.pop(key, None))
    monkeypatch.setattr(requests, "keys_with", lambda prefix: sorted(key for key in held if key.startswith(prefix)))
    monkeypatch.setattr(requests, "POLL_S", 0.01)
    monkeypatch.setattr(publishers, "LOOK_S", 0.01)
    # several parts of a small set
    monkeypatch.setattr(parcel, "PART_BYTES", 100_000)
    return held


class Driver:
    """A study's images, decoded here; the folder itself is removed by `lose`."""

    def __init__(self, root: Path, tiny: TrialConfig) -> None:
        self.folder, self.storage = make_folder(root / "images"), root / "store" / "study"
        self.config = tiny.override({"data.source": str(self.folder), "data.image_size": SIZE, "data.range": "bits:8"})
        self.task = Task(source=str(self.folder), seed=self.config.seed)
        self.split: Split = split_for(self.config, self.task)
        self.paths = [file.path for file in self.split.development]
        self.decoding = Decoding.of(self.config.data)
        self.array: CachedImages = ImageCache(cache_folder()).array(self.split.root, self.paths, self.decoding)
        self.content = data_digest(self.split.root, self.paths)
        self.key = set_key(self.content, self.decoding)
        self.lines: list[str] = []
        self.carrier = StorageCarrier(str(self.storage))
        self.weights = root / "net.pth"
        torch.save({"w": torch.arange(50_000.0)}, self.weights)

    def lose(self) -> None:
        shutil.rmtree(self.folder)

    def spec(self, always: bool = False, weights: str = "random") -> TrialSpec:
        key = self.task.key
        return TrialSpec(
            config=self.config.override({"model.weights": weights}).model_dump(),
            tasks=[self.task],
            storage=str(self.storage),
            cache=str(cache_folder()),
            checkpoint_epochs=[],
            checkpoint_interval=1e6,
            splits={key: self.split.digest},
            contents={key: self.content},
            weights_sha256={} if weights == "random" else {"efficientnet_lite0": file_sha256(self.weights)},
            versions={},
            published=Published(key=KEY, always=always),
        )

    @contextmanager
    def publishing(self) -> Iterator[Publisher]:
        splits = {self.task.key: self.split}
        weights = {"efficientnet_lite0": self.weights}
        notes = Notes(self.carrier, "study")
        with Publisher(KEY, self.carrier, splits, weights, False, self.lines.append, notes) as made:
            # the digests are known from here on
            yield made


@pytest.fixture
def driver(tmp_path: Path, tiny: TrialConfig) -> Driver:
    return Driver(tmp_path, tiny)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes the builders that come next those of a node; gives its cache folder."""

    def become(name: str = "node") -> Path:
        cache = tmp_path / name / "cache"
        monkeypatch.setattr(building, "cache_here", lambda _: cache)
        return cache

    return become


def build(spec: TrialSpec, stop: Callable[[], bool] = lambda: False) -> Any:
    (trainer,) = TrainerBuilder(spec).build(TrialConfig.load(spec.config), spec.tasks, stop)
    return trainer


def test_a_node_without_the_images_trains_on_the_drivers_pixels(driver: Driver, node: Callable[..., Path]) -> None:
    spec = driver.spec()
    own = build(spec.model_copy(update={"published": None}))
    reports = [own.run_epoch(), own.run_epoch()]
    cache = node()
    with driver.publishing():
        driver.lose()
        trainer = build(spec)
        assert trainer.split.digest == driver.split.digest == spec.splits[driver.task.key]
        assert trainer.split.content == driver.content
        # every field of every file: masks, groups and the makers' marks too
        for name in ("train", "selection", "calibration", "test", "development", "mode", "makers", "folds"):
            assert getattr(trainer.split, name) == getattr(driver.split, name)
        held = ImageCache(cache).array(Path("/nowhere"), driver.paths, driver.decoding, content=driver.content)
        np.testing.assert_array_equal(held.array, driver.array.array)
        assert held.index == driver.array.index
        assert file_sha256(cache / driver.key / "images.npy") == file_sha256(cache_folder() / driver.key / "images.npy")
        np.testing.assert_array_equal(trainer.selection.images, own.selection.images)
        assert trainer.selection.labels.tolist() == own.selection.labels.tolist()
        told = [trainer.run_epoch(), trainer.run_epoch()]
    assert [row.scores for row in told] == [row.scores for row in reports]
    assert sum("takes images or weights" in line for line in driver.lines) == 1
    assert sum(line.startswith("images for the nodes") for line in driver.lines) == 1


def test_what_is_there_is_neither_packed_nor_asked_for_again(
    driver: Driver, node: Callable[..., Path], store: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[str] = []
    pack = carriers.pack

    def counted(stream: Any, name: str, send: Any, about: Any) -> Any:
        packed.append(name)
        return pack(stream, name, send, about)

    monkeypatch.setattr(carriers, "pack", counted)
    node()
    with driver.publishing():
        driver.lose()
        build(driver.spec())
        assert len(packed) == 2, "the splits and one set of images"
        # another actor of the same node, and then a node that comes late
        build(driver.spec())
        node("late")
        build(driver.spec())
        assert len(packed) == 2
    # a second search of the same data, with the same storage: a launch of its own, no answer left over
    deadline = time.monotonic() + 5
    while store and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not store, "a launch leaves no keys"
    node("third")
    with driver_again(driver):
        build(driver.spec())
    assert len(packed) == 2
    assert "there already" in driver.lines[-1]


@contextmanager
def driver_again(driver: Driver) -> Iterator[None]:
    """Another search: its digests come from the published splits, since the folder is gone."""
    from dataclasses import replace

    split = replace(driver.split, content=driver.content)
    with Publisher(KEY, driver.carrier, {driver.task.key: split}, {}, False, driver.lines.append):
        yield


def test_a_node_that_has_the_images_takes_nothing_unless_always(driver: Driver, node: Callable[..., Path]) -> None:
    node()
    with driver.publishing():
        build(driver.spec())
        assert not driver.lines and not (driver.storage.parent / FOLDER).exists()
        node("other")
        build(driver.spec(always=True))
        assert [line.partition(" ")[0] for line in driver.lines] == ["node", "images"]


def test_a_node_with_other_images_is_refused_as_before(driver: Driver, node: Callable[..., Path]) -> None:
    node()
    with driver.publishing():
        one = driver.folder / driver.split.train[0].path
        shutil.copy(driver.folder / driver.split.train[1].path, one)
        with pytest.raises(ChangedDataError):
            build(driver.spec())
        one.rename(one.with_name("other.png"))
        with pytest.raises(ClusterError, match="differ from the driver's"):
            build(driver.spec())
        # who trains on what is published alone does not look at them
        assert build(driver.spec(always=True)).split.digest == driver.split.digest


def test_a_damaged_parcel_is_published_again(driver: Driver, node: Callable[..., Path]) -> None:
    node()
    with driver.publishing():
        driver.lose()
        build(driver.spec())
        (folder,) = [
            path.parent
            for path in (driver.storage.parent / FOLDER).glob("*/parcel.json")
            if len(list(path.parent.iterdir())) > 2
        ]
        parts = sorted(path for path in folder.iterdir() if path.name != "parcel.json")
        content = parts[1].read_bytes()
        parts[1].write_bytes(content[:50] + bytes([content[50] ^ 4]) + content[51:])
        cache = node("late")
        build(driver.spec())
        assert parts[1].read_bytes() == content
        held = ImageCache(cache).array(Path("/nowhere"), driver.paths, driver.decoding, content=driver.content)
        np.testing.assert_array_equal(held.array, driver.array.array)
        assert not list(cache.glob("*.tmp"))
        # gone as a whole while the search runs
        shutil.rmtree(folder)
        node("later")
        build(driver.spec())


def test_what_stays_broken_leaves_the_node_out(
    driver: Driver, node: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = node()
    read = carriers._read

    def flipped(system: Any, path: str) -> bytes:
        content = read(system, path)
        return content if path.endswith(".json") else bytes([content[0] ^ 1]) + content[1:]

    monkeypatch.setattr(carriers, "_read", flipped)
    with driver.publishing():
        driver.lose()
        with pytest.raises(PlaceError, match="is broken, 3 times over"):
            build(driver.spec())
    assert not list(cache.glob("*/images.npy")) and not list(cache.glob("*.tmp"))


def test_a_damaged_set_in_the_nodes_cache_is_taken_again(driver: Driver, node: Callable[..., Path]) -> None:
    cache = node()
    with driver.publishing():
        driver.lose()
        build(driver.spec())
        stored = cache / driver.key / "images.npy"
        content = bytearray(stored.read_bytes())
        content[-1] ^= 1
        stored.chmod(0o644)
        time.sleep(0.01)
        stored.write_bytes(content)
        build(driver.spec())
        assert file_sha256(stored) == file_sha256(cache_folder() / driver.key / "images.npy")


def test_a_node_without_room_says_how_much_it_needs(
    driver: Driver, node: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = node()
    usage = shutil.disk_usage("/")._replace(free=1 << 20)
    with driver.publishing():
        driver.lose()
        monkeypatch.setattr(parcel.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(PlaceError, match=rf"the disk of {cache}.* needs 1 MiB .* has 1 MiB free"):
            build(driver.spec())
    assert not list(cache.glob("*.tmp"))


def test_weights_come_with_their_name_and_are_verified(driver: Driver, node: Callable[..., Path]) -> None:
    cache, digest = node(), file_sha256(driver.weights)
    with driver.publishing():
        taking = Taking(Published(key=KEY), cache)
        held = taking.weights("efficientnet_lite0", digest)
        assert held == cache / "weights" / f"{digest}.pth" and file_sha256(held) == digest
        driver.weights.unlink()
        assert taking.weights("efficientnet_lite0", digest) == held
        held.write_bytes(b"damaged")
        assert file_sha256(taking.weights("efficientnet_lite0", digest)) == digest


def test_a_trial_takes_weights_that_its_node_lacks(
    driver: Driver, node: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = node()
    given: list[Any] = []
    monkeypatch.setattr(building, "Trainer", lambda *_, weights, **__: given.append(weights))
    spec = driver.spec(weights=str(driver.weights))
    with driver.publishing():
        build(spec)
        copy = driver.weights.with_name("moved.pth")
        shutil.move(driver.weights, copy)
        with pytest.raises(PlaceError):
            build(spec)
    driver.weights = copy
    digest = file_sha256(copy)
    with driver.publishing():
        build(spec)
    assert given == [copy.with_name("net.pth"), cache / "weights" / f"{digest}.pth"]


def test_a_stop_ends_the_waiting(driver: Driver, node: Callable[..., Path]) -> None:
    node()
    driver.lose()
    with pytest.raises(StoppedError):
        build(driver.spec(), stop=lambda: True)


def test_trouble_of_the_driver_reaches_the_node_and_passes(
    driver: Driver, node: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    node()
    monkeypatch.setattr(publishers, "REFUSED_S", 0.05)
    problems: list[Exception] = [StorageError("the storage s3://x does not answer"), OSError(28, "No space left")]
    send = driver.carrier.send

    def troubled(*given: Any, **more: Any) -> Any:
        if problems:
            raise problems.pop(0)
        return send(*given, **more)

    monkeypatch.setattr(driver.carrier, "send", troubled)
    with driver.publishing():
        driver.lose()
        with pytest.raises(StorageError, match="does not answer"):
            build(driver.spec())
        time.sleep(0.2)
        with pytest.raises(PlaceError, match="No space left"):
            build(driver.spec())
        time.sleep(0.2)
        build(driver.spec())
    assert sum(line.startswith("cannot publish splits") for line in driver.lines) == 2


def test_a_request_that_makes_no_sense_is_answered(driver: Driver) -> None:
    with driver.publishing():
        for wanted in ({}, {"split": "unknown", "decoding": {"size": 64}}, {"backbone": "none"}):
            for what in ("images", "weights", "secrets"):
                request = requests.Request(f"{what}-{len(wanted)}{''.join(wanted)}", 1, wanted)
                with pytest.raises(PlaceError):
                    requests.ask(KEY, request, lambda: None)


def test_only_one_process_of_a_machine_fetches(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
import numpy as np
from sctune.data.images import ImageCache
from sctune.files import file_sha256
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
def fetch(target):
    with open(log, "a") as out:
        out.write("fetched\\n")
    time.sleep(1.5)
    with target.open("wb") as out:
        np.save(out, np.full((4, 8, 8, 3), 7, np.uint8))
    return {"format_version": 2, "images": 4, "size": 8, "skipped": [], "sha256": file_sha256(target)}
print("ready", flush=True)
sys.stdin.readline()
ImageCache(folder).adopt("k" * 40, 4, 8, fetch)
print(int(np.load(folder / ("k" * 40) / "images.npy").sum()))
"""
    words = [sys.executable, "-c", script, str(tmp_path / "cache"), str(tmp_path / "log")]
    racing = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert all(one.stdout is not None and one.stdout.readline() == "ready\n" for one in racing)
    told = [one.stdin for one in racing]
    for stdin in told:
        assert stdin is not None
        stdin.write("go\n")
        stdin.flush()
    assert [one.communicate()[0] for one in racing] == ["5376\n", "5376\n"]
    assert (tmp_path / "log").read_text() == "fetched\n"


def test_a_process_that_waits_for_another_ones_fetch_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    calls: list[int] = []

    def pause() -> None:
        calls.append(1)
        raise StoppedError("stopped")

    with FileLock(tmp_path / "locks" / "k.lock"), pytest.raises(StoppedError):
        ImageCache(tmp_path).adopt("k", 1, 8, lambda _: {}, pause)
    assert calls == [1]


def test_files_that_changed_are_not_decoded_under_the_old_name(driver: Driver, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "fresh")
    first, second = (driver.folder / file.path for file in driver.split.train[:2])
    shutil.copy(first, second)
    with pytest.raises(ChangedDataError, match="hold something else"):
        cache.array(driver.split.root, driver.paths, driver.decoding, content=driver.content)
    assert not cache.entries()
    # what is stored already is what they held
    held = ImageCache(cache_folder()).array(driver.split.root, driver.paths, driver.decoding, content=driver.content)
    np.testing.assert_array_equal(held.array, driver.array.array)


def test_a_set_whose_fetch_fails_leaves_nothing(tmp_path: Path) -> None:
    def fetch(target: Path) -> dict[str, Any]:
        target.write_bytes(b"half")
        raise PlaceError("the disk is full")

    with pytest.raises(PlaceError, match="the disk is full"):
        ImageCache(tmp_path).adopt("k", 1, 8, fetch)
    assert not list(tmp_path.glob("k*")) and ImageCache(tmp_path).entries() == []


def make_study(driver: Driver, tmp_path: Path) -> StudyManifest:
    space = make_space(tmp_path, driver.config, parameters=FEW)
    splits = {driver.task.key: driver.split}
    return make_manifest(
        space,
        study_id="study",
        tasks=(driver.task,),
        splits={driver.task.key: driver.split.digest},
        data=DataSpec(name="images", digest=content_digest(splits)),
        storage_path=str(driver.storage),
    )


def test_a_driver_without_the_images_goes_on_with_what_was_published(
    driver: Driver, node: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_study(driver, tmp_path)
    assert resumed_splits(manifest, tmp_path) == ({driver.task.key: driver.split}, [])
    node()
    with driver.publishing():
        driver.lose()
        with pytest.raises(DataError, match=r"there is no folder .*; and the study cannot go on .* nothing of it in"):
            resumed_splits(manifest, tmp_path)
        build(driver.spec())
    monkeypatch.setenv("SCTUNE_HOME", str(tmp_path / "other"))
    splits, (line,) = resumed_splits(manifest, tmp_path)
    split = splits[driver.task.key]
    assert split.digest == driver.split.digest and split.content == driver.content
    assert "1 decoded set(s)" in line and str(driver.storage.parent / FOLDER) in line
    assert task_digests(splits) == {driver.task.key: driver.content}
    held = ImageCache(cache_folder()).array(split.root, driver.paths, driver.decoding, content=split.content)
    np.testing.assert_array_equal(held.array, driver.array.array)
    # of other images: the manifest is the truth
    other = manifest.model_copy(update={"data": DataSpec(name="images", digest="0")})
    with pytest.raises(DataError, match="of other images"):
        resumed_splits(other, tmp_path)
    (driver.storage.parent / FOLDER / "studies" / "study.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(DataError, match="nothing of it in"):
        resumed_splits(manifest, tmp_path)


def test_images_that_were_changed_are_not_taken_from_what_was_published(
    driver: Driver, node: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = make_study(driver, tmp_path)
    node()
    with driver.publishing():
        build(driver.spec(always=True))
    first, second = (driver.folder / file.path for file in driver.split.train[:2])
    shutil.copy(first, second)
    with pytest.raises(ChangedDataError):
        resumed_splits(manifest, tmp_path)


def test_two_nodes_that_ask_at_once_are_served_by_one_packing(driver: Driver, tmp_path: Path) -> None:
    found: list[Any] = []

    def take(name: str) -> None:
        taking = Taking(Published(key=KEY), tmp_path / name)
        split = taking.split(driver.split.digest)
        taking.images(split, driver.decoding)
        found.append(file_sha256(tmp_path / name / driver.key / "images.npy"))

    nodes = [threading.Thread(target=take, args=(name,)) for name in ("a", "b", "c")]
    for one in nodes:
        one.start()
    deadline = time.monotonic() + 20
    while not asked(KEY) and time.monotonic() < deadline:
        time.sleep(0.01)
    with driver.publishing():
        for one in nodes:
            one.join(60)
    assert len(found) == 3 and len(set(found)) == 1
    assert sum(line.startswith("images for the nodes") for line in driver.lines) == 1
