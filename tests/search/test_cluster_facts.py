"""What a node tells of itself, asked in this process: real files, a mount that hangs, a container's memory."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sctune.config import Task, TrialConfig
from sctune.data.place import needs_of
from sctune.data.split import Split, split_for
from sctune.search.cluster import machine
from sctune.search.cluster.asking import Answer, limit_of
from sctune.search.cluster.facts import NodeFacts, all_versions, gather
from sctune.search.cluster.findings import Node, State
from sctune.search.cluster.judge import judge
from sctune.search.cluster.machine import memory
from sctune.search.cluster.wanted import FileSet, Question, Wanted, Weights
from sctune.search.run.wanted import image_sets

CONTENT = b"probe"
HERE = Node("id", "host", "10.0.0.1", 2.0, 0.0, head=False)


@pytest.fixture
def wanted(tiny: TrialConfig, tmp_path: Path) -> Wanted:
    split: Split = split_for(tiny, Task(source=tiny.data.source))
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    return Wanted(
        storage=str(tmp_path / "studies" / "mine"),
        versions=all_versions(),
        needs=needs_of([split], tmp_path / "cache", 32),
        data=image_sets({"task": split, "again": split}),
        weights={"resnet18": Weights(str(weights), "9a41da85a9bfce5e22e2e5a5f4c8b8f9")},
    )


def question(tmp_path: Path, limit_s: float = 60.0, gpus: int = 0) -> Question:
    folder = tmp_path / "studies"
    folder.mkdir(exist_ok=True)
    (folder / "marker").write_bytes(CONTENT)
    places = (str(folder / "marker"), str(folder / "answer"))
    return Question(*places, content=CONTENT, trains=True, gpus=gpus, head=False, limit_s=limit_s)


def failures(wanted: Wanted, facts: NodeFacts) -> set[str]:
    (report,) = judge(wanted, [Answer(HERE, facts, returned=True)])
    return {one.check for one in report.findings if one.state is State.FAILED} - {"token", "memory", "disk"}


def test_a_node_tells_what_it_has(wanted: Wanted, tmp_path: Path) -> None:
    facts = gather(wanted, question(tmp_path))
    assert facts.problems == {}
    assert facts.versions == wanted.versions and facts.versions["ray"] == "2.60.0"
    (images,) = wanted.data
    assert facts.digests == (images.digest,) and len(images.paths) > 50
    assert images.nbytes == sum(Path(images.root, path).stat().st_size for path in images.paths)
    assert facts.storage_read and (tmp_path / "studies" / "answer").read_bytes() == CONTENT
    # of the bytes `weights`, by sha256sum
    assert facts.weights == {"resnet18": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"}
    assert facts.memory_free is not None and 0 < facts.memory_free <= psutil.virtual_memory().total
    assert failures(wanted, facts) == {"weights"}


def test_what_is_missing_or_different(wanted: Wanted, tmp_path: Path) -> None:
    (images,) = wanted.data
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(images.root, elsewhere)
    other = replace(wanted, data=(replace(images, root=str(elsewhere)),), weights={})
    assert failures(other, gather(other, question(tmp_path))) == set()
    changed = elsewhere / images.paths[7]
    changed.write_bytes(changed.read_bytes() + b"x")
    assert failures(other, gather(other, question(tmp_path))) == {"data"}
    changed.unlink()
    assert "cannot read" in str(gather(other, question(tmp_path)).lacks)
    assert failures(other, gather(other, question(tmp_path))) == {"data"}
    # nothing where the driver wrote, and something else there
    empty = replace(question(tmp_path), marker=str(tmp_path / "nowhere" / "marker"))
    assert failures(other, gather(other, empty)) == {"data", "storage"}
    assert failures(other, gather(other, replace(question(tmp_path), content=b"another"))) == {"data", "storage"}
    # read, not written
    shut = replace(question(tmp_path), answer=str(tmp_path / "weights.pth" / "answer"))
    facts = gather(other, shut)
    assert facts.storage_read and "Not a directory" in str(facts.storage_problem)
    no_file = replace(wanted, weights={"resnet18": Weights("/nowhere/weights.pth", "0")})
    assert failures(no_file, gather(no_file, question(tmp_path))) == {"weights"}


@contextmanager
def hanging(path: Path) -> Iterator[None]:
    """What opens the file waits, as on a mount whose server is away, until the block ends."""
    os.mkfifo(path)
    try:
        yield
    finally:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def test_a_mount_that_hangs_is_named_and_the_rest_is_told(wanted: Wanted, tmp_path: Path) -> None:
    with hanging(tmp_path / "image.png"):
        away = replace(wanted, needs=replace(wanted.needs, samples=(str(tmp_path / "image.png"),)))
        facts = gather(away, question(tmp_path, limit_s=3.0))
        assert facts.problems == {"data": "no answer within 3 s"}
        assert facts.versions and facts.weights and facts.storage_read
        assert failures(away, facts) == {"data", "weights"}


def test_more_images_may_take_longer(wanted: Wanted) -> None:
    (images,) = wanted.data
    large = replace(wanted, data=(replace(images, nbytes=10**10),))
    assert limit_of(wanted) == pytest.approx(120, abs=1) and limit_of(large) == pytest.approx(320)


def test_a_container_has_what_its_group_may_take(tmp_path: Path) -> None:
    machine_total = psutil.virtual_memory().total
    files = {"memory.max": "1000000\n", "memory.current": "700000\n", "memory.stat": "anon 1\ninactive_file 200000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert memory(tmp_path) == {"memory_total": 1_000_000, "memory_free": 500_000}
    (tmp_path / "memory.max").write_text("max\n")
    assert memory(tmp_path)["memory_total"] == machine_total
    assert memory(tmp_path / "none")["memory_total"] == machine_total


def test_ports_of_the_processes_that_ray_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process stands for the raylet."""
    monkeypatch.setattr(machine, "_raylet", psutil.Process)
    with socket.create_server(("0.0.0.0", 0)) as public, socket.create_server(("127.0.0.1", 0)) as private:
        found = {(one.host, one.port) for one in machine.listeners(head=False)}
        assert {("0.0.0.0", public.getsockname()[1]), ("127.0.0.1", private.getsockname()[1])} <= found
    assert FileSet.here(Path("/"), ()).nbytes == 0
