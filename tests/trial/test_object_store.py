"""Checkpoints in an object store over a real S3 interface, which may be away for a while."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sctune.errors import CheckpointError, StorageError, StudyError
from sctune.report import OBJECTIVE, EpochReport
from sctune.search.plan.locations import storage_uri
from sctune.search.reconcile.stored_trials import list_trials
from sctune.search.run import back_pressure as gates
from sctune.search.run.back_pressure import DiskUse
from sctune.search.run.retention import CheckpointKeeper
from sctune.trial import storage as storages
from sctune.trial.checkpoint import CheckpointName, TrialStore
from sctune.trial.published.carriers import StorageCarrier, fetcher
from sctune.trial.published.parcel import BrokenParcelError, unpack
from sctune.trial.storage import open_storage, with_region
from tests.s3_server import BUCKET, S3Server

TASKS = {"task": ({"model/w": torch.arange(12.0).reshape(3, 4)}, {"format_version": 1, "epoch": 1})}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def storage(server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{request.node.name}"


def save(store: TrialStore, epoch: int, attempt: int = 1) -> CheckpointName:
    return store.save(epoch, attempt, TASKS, EpochReport(epoch, 9, {OBJECTIVE: 0.5}, {"task": [0.1]}).to_dict())


def test_a_trials_checkpoints_come_and_go(storage: str, server: S3Server) -> None:
    store = TrialStore(storage, 3)
    assert store.names() == [] and store.load_latest() is None and list_trials(storage) == []
    for epoch in (1, 2, 3):
        save(store, epoch)
    assert [name.epoch for name in store.names()] == [2, 3]
    loaded = store.load_latest()
    assert loaded is not None and loaded.report is not None and loaded.report["epoch"] == 3
    assert torch.equal(loaded.tasks["task"][0]["model/w"], TASKS["task"][0]["model/w"])
    folder = f"{storage.removeprefix(f's3://{BUCKET}/')}/trials/00003"
    files = [
        f"{folder}/epoch-000{epoch}-attempt-01/{name}"
        for epoch in (2, 3)
        for name in ("checkpoint.json", "task-0.safetensors")
    ]
    assert [key for key in server.objects() if key.startswith(folder)] == files
    (found,) = list_trials(storage)
    assert (found.number, found.epochs, found.leftovers) == (3, (2, 3), ())
    assert DiskUse(Path("/nowhere"), storage).largest_checkpoint() > 200
    store.clear()
    assert store.names() == [] and not [key for key in server.objects() if key.startswith(folder)]


def test_the_drivers_disk_needs_no_room_for_a_stores_checkpoints(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {"task": ({"model/w": torch.zeros(250_000)}, {})}
    for number in range(2):
        TrialStore(storage, number).save(1, 1, large)
    listed: list[str] = []
    files = gates._files
    monkeypatch.setattr(gates, "_files", lambda system, root: listed.append(root) or files(system, root))
    monkeypatch.setattr(gates.shutil, "disk_usage", lambda _: SimpleNamespace(free=gates.MARGIN + 1))
    lines: list[str] = []

    def make_gate(max_bytes: int | None) -> gates.StartGate:
        keeper = CheckpointKeeper(storage, 3, [])
        keeper.kept = [(0.9, 0), (0.8, -1)]
        return gates.StartGate(DiskUse(tmp_path, storage), keeper, max_bytes, 8, lambda: None, lines.append)

    gate = make_gate(None)
    for _ in range(3):
        gate.look()
    assert not gate() and not lines
    assert listed == [], "nothing asks what the store holds"
    limited = make_gate(10**8)
    for _ in range(3):
        limited.look()
    bucket = storage.removeprefix("s3://")
    assert listed.count(bucket) == 1
    # what there is to be removed is looked up when it is
    small = make_gate(1_500_000)
    small.look()
    assert not small() and [bool(TrialStore(storage, number).names()) for number in range(2)] == [True, False]
    # a store that is away is noticed without a listing
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    away = make_gate(None)
    away.look()
    assert away() and "does not answer or refuses" in lines[-1]


def test_without_its_last_file_a_checkpoint_is_none(storage: str) -> None:
    store = TrialStore(storage, 0)
    save(store, 1)
    name = save(store, 2)
    store.system.delete_file(f"{store.root}/{name.folder}/checkpoint.json")
    assert [name.epoch for name in store.names()] == [1]
    (found,) = list_trials(storage)
    assert found.leftovers == (name.folder,)
    store.system.delete_file(f"{store.root}/epoch-0001-attempt-01/task-0.safetensors")
    with pytest.raises(CheckpointError, match="cannot read the checkpoint") as damaged:
        store.load(CheckpointName(1, 1))
    assert not isinstance(damaged.value, StorageError)
    assert store.load_latest() is None


def test_what_is_published_is_there_once_and_whole(storage: str, server: S3Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 500
    name = hashlib.sha256(content).hexdigest()
    carrier = StorageCarrier(f"{storage}/one")
    assert carrier.noted("id") is None and carrier.find(name) is None
    parcel, there = carrier.send(io.BytesIO(content), name, {"size": 3})
    folder = f"{storage.removeprefix(f's3://{BUCKET}/')}/.published/{name}"
    (part,) = parcel.parts
    assert not there and [key for key in server.objects() if key.startswith(folder)] == [
        *sorted([f"{folder}/{part.name}", f"{folder}/parcel.json"])
    ]
    # another study, beside the first
    other = StorageCarrier(f"{storage}/two")
    assert other.send(io.BytesIO(content), name, {"size": 3}) == (parcel, True)
    fetch = fetcher(parcel, other.address(parcel))
    unpack(parcel, fetch, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    carrier.note("id", {"splits": []})
    assert other.noted("id") == {"splits": []}
    system, root = open_storage(storage)
    system.delete_file(f"{root}/.published/{name}/{part.name}")
    assert other.find(name) is None
    with pytest.raises(BrokenParcelError, match="is gone from s3://"):
        fetch(part)


def test_a_store_that_is_away_gives_nothing_published(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    carrier = StorageCarrier(f"{storage}/one")
    content = b"x" * 100
    parcel, _ = carrier.send(io.BytesIO(content), hashlib.sha256(content).hexdigest(), {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    # as a node does it: with a connection of its own. Waited for, and no reason to publish again
    with pytest.raises(StorageError, match="NETWORK_CONNECTION"):
        fetcher(parcel, carrier.address(parcel))(parcel.parts[0])


def test_a_store_that_is_away_is_no_damaged_checkpoint(
    storage: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = save(TrialStore(storage, 0), 1)
    # nobody listens on port 1; the client tries for 6 s each time
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = TrialStore(storage, 0)
    for call in (store.load_latest, lambda: store.load(name)):
        with pytest.raises(StorageError, match="NETWORK_CONNECTION") as told:
            call()
        assert "\n" not in str(told.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    assert TrialStore(storage, 0).load_latest() is not None


def test_a_checkpoint_waits_for_a_store_that_comes_back(storage: str, server: S3Server) -> None:
    server.hold()
    back = threading.Timer(2.0, server.release)
    back.start()
    store = TrialStore(storage, 0)
    name = save(store, 1)
    back.join()
    assert store.names() == [name]


@pytest.mark.usefixtures("storage")
def test_a_place_that_takes_nothing_is_refused_before_a_search(tmp_path: Path, server: S3Server) -> None:
    assert storage_uri(f"s3://{BUCKET}/fine/", tmp_path / "mine") == f"s3://{BUCKET}/fine/mine"
    assert not [key for key in server.objects() if key.startswith("fine")]
    with pytest.raises(StudyError, match="takes no file") as refused:
        storage_uri("s3://no-such-bucket/x", tmp_path / "mine")
    assert "\n" not in str(refused.value) and "--storage-path s3://no-such-bucket/x: " in str(refused.value)


def test_a_checkpoint_stands_where_older_ones_cannot_be_removed(
    storage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = TrialStore(storage, 0)
    with monkeypatch.context() as patched:
        patched.setattr(store, "_trim", lambda *_: (_ for _ in ()).throw(StorageError("away")))
        name = save(store, 1)
    assert store.names() == [name]
    assert "older checkpoints" in caplog.text


def test_the_region_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    asked: list[str] = []
    monkeypatch.setattr(storages.fs, "resolve_s3_region", lambda bucket: asked.append(bucket) or "eu-north-1")
    found = with_region("s3://parts/a%20b/c")
    assert found == "s3://parts/a%20b/c?region=eu-north-1"
    assert with_region(found) == found
    assert with_region("/a/folder") == "/a/folder"
    assert asked == ["parts"]
    system, root = open_storage(found)
    assert (system.region, root) == ("eu-north-1", "parts/a b/c")


@pytest.mark.parametrize(
    ("uri", "error", "text"),
    [
        ("s3://bucket/x?regoin=eu", CheckpointError, "unknown option 'regoin'"),
        ("s3:///x", CheckpointError, "names no bucket"),
        ("s3://bucket/x", StorageError, "does not answer"),
    ],
)
def test_an_address_that_does_not_work(
    uri: str, error: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)

    def nobody(_bucket: str) -> str:
        raise OSError("When resolving region for bucket:\nCouldn't resolve host name")

    monkeypatch.setattr(storages.fs, "resolve_s3_region", nobody)
    with pytest.raises(error, match=text) as told:
        open_storage(uri)
    assert isinstance(told.value, StorageError) == (error is StorageError) and "\n" not in str(told.value)
