"""Two nodes of a real Ray, one of which lacks something or is broken: it is left out, and no trial fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from sctune.search.cluster.connection import RAY_ENVIRONMENT, nodes_for
from sctune.search.cluster.resources import TrialResources
from sctune.search.run.controller import End, EndReason
from sctune.search.run.faults import Faults
from tests.search.test_faults_in_ray import search

ONE = TrialResources(1.0, 0.0)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[str, str]]:
    """Ids of the larger node and of the other one."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False, logging_level="CRITICAL")
        by_size = {node["Resources"]["CPU"]: node["NodeID"] for node in ray.nodes()}
        yield by_size[2.0], by_size[1.0]
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_trials_leave_a_node_that_lacks_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: tuple[str, str]
) -> None:
    log, first = tmp_path / "epochs", tmp_path / "first"

    def trouble(trial: Any, epoch: int) -> None:
        import os
        from contextlib import suppress

        with open(log, "a") as file:
            file.write(f"{trial.number} {trial.attempt} {trial._node}\n")
        if epoch == 2:
            # the node that comes first is the one whose disk is full; its workers wait there to be used again
            with suppress(FileExistsError):
                os.symlink(trial._node, first)
            if os.readlink(first) == trial._node:
                raise OSError(28, "No space left on device", "/cache")

    judge = Faults(ONE, TrialResources(2.0, 0.0), lambda _: True, lambda share: nodes_for(share.cpus, share.gpus))
    controller, stored = search(tmp_path, monkeypatch, trouble, 0.0, judge)
    assert [trial.state.name for trial in stored] == ["COMPLETE"] * 5
    bad = os.readlink(first)
    assert controller.end == End(EndReason.DONE) and judge.left_out == {bad} < set(nodes)
    rows = [line.split() for line in log.read_text().splitlines()]
    moved = {number for number, _, node in rows if node == bad}
    for number in moved:
        # from its checkpoint on, so that the one epoch on the bad node is not repeated
        told = [(attempt, node == bad) for which, attempt, node in rows if which == number]
        assert told == [("1", True), ("1", True), ("2", False), ("2", False)]
    assert moved


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_trials_leave_a_node_that_fails_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: tuple[str, str]
) -> None:
    broken, log = nodes[0], tmp_path / "nodes"

    def trouble(trial: Any, epoch: int) -> None:
        with open(log, "a") as file:
            file.write(f"{trial.number} {epoch} {trial._node}\n")
        if epoch == 2 and trial._node == broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    judge = Faults(ONE, TrialResources(2.0, 0.0), lambda _: True, lambda share: nodes_for(share.cpus, share.gpus))
    controller, stored = search(tmp_path, monkeypatch, trouble, 0.0, judge)
    assert [trial.state.name for trial in stored] == ["COMPLETE"] * 5
    assert controller.end == End(EndReason.DONE) and judge.left_out == {broken} < set(nodes)
    epochs = [line.rpartition(" ")[0] for line in log.read_text().splitlines()]
    assert max(map(epochs.count, epochs)) == 2, "once there, once elsewhere"
