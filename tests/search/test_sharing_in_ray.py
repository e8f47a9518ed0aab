"""Two drivers on one real cluster: they share it, one that is killed is gone, and a node that joins is used."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from sctune.search.cluster.board import Board
from sctune.search.cluster.connection import RAY_ENVIRONMENT

DRIVER = "tests.search.sharing_driver"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that runs no trials, and no worker yet."""
    for name, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        ray.init(made.address, log_to_driver=False, logging_level="CRITICAL")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def start(root: Path, name: str, address: str, seconds: float, patience: float) -> subprocess.Popen[bytes]:
    folder = root / name
    folder.mkdir()
    output = (folder / "output").open("wb")
    words = [sys.executable, "-m", DRIVER, str(folder), name, address, str(seconds), str(patience)]
    return subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def until(condition: Callable[[], bool], root: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            said = {path.parent.name: path.read_text()[-2000:] for path in root.glob("*/output")}
            pytest.fail(f"it did not happen; {said}")
        time.sleep(0.2)


@pytest.mark.timeout(300)
def test_two_drivers_share_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    board = Board()

    def running() -> dict[str, int]:
        return {one.key: one.running for one in board.read()}

    def live() -> dict[str, int]:
        return {one.key: one.live for one in board.read()}

    cluster.add_node(num_cpus=2)
    drivers = [start(tmp_path, "a", cluster.address, 0.3, 300)]
    try:
        until(lambda: running() == {"a": 2}, tmp_path)
        drivers.append(start(tmp_path, "b", cluster.address, 0.3, 300))
        # whoever came first gives a slot back as its trials end
        until(lambda: running() == {"a": 1, "b": 1}, tmp_path)
        cluster.add_node(num_cpus=2)
        until(lambda: live() == {"a": 2, "b": 2}, tmp_path)
        drivers[1].send_signal(signal.SIGKILL)
        until(lambda: live() == {"a": 4}, tmp_path)
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()
    told = (tmp_path / "a" / "lines").read_text()
    assert "the cluster is shared with b of u@h (--share 1)" in told
    assert "the cluster has room for 4 trial(s) of this search now, 2 before" in told
    assert "no other search is on the cluster any more" in told


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_long_trial_gives_its_only_slot_up_at_an_epoch_and_goes_on_later(cluster: Cluster, tmp_path: Path) -> None:
    board = Board()

    def running() -> dict[str, int]:
        return {one.key: one.running for one in board.read()}

    cluster.add_node(num_cpus=1)
    drivers = [start(tmp_path, "a", cluster.address, 5.0, 3)]
    try:
        until(lambda: running() == {"a": 1}, tmp_path)
        drivers.append(start(tmp_path, "b", cluster.address, 5.0, 3))
        until(lambda: running() == {"a": 0, "b": 1}, tmp_path)
        until(lambda: running() == {"a": 1, "b": 0}, tmp_path)
        until(lambda: running() == {"a": 0, "b": 1}, tmp_path)
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()
    rows = [tuple(map(int, line.split())) for line in (tmp_path / "a" / "epochs").read_text().splitlines()]
    # in order, none twice, one after another, over more than one attempt
    assert [row[:2] for row in rows] == [(index // 3, index % 3 + 1) for index in range(len(rows))]
    assert max(attempt for _, _, attempt in rows) > 1
