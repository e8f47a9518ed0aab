"""Two nodes of a real Ray, one of which lacks the images or the room for them: it is left out, and no trial fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from sctune.data.place import Needs
from sctune.errors import ClusterError
from sctune.search.cluster import node_check
from sctune.search.cluster.connection import RAY_ENVIRONMENT, nodes_for, plan_resources
from sctune.search.cluster.resources import TrialResources
from sctune.search.run.controller import End, EndReason
from sctune.search.run.faults import Faults
from sctune.trial.trainable import package_versions
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


@pytest.mark.timeout(120)
def test_nodes_are_looked_at_before_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: tuple[str, str]
) -> None:
    small = nodes[1]
    image, cache = tmp_path / "image.png", tmp_path / "cache"
    needs = Needs((str(image),), str(cache), 1000)
    storage, versions = str(tmp_path / "store" / "s"), package_versions()
    with pytest.raises(ClusterError, match=r"no node can run trials: node .*: cannot read .*image.png: No such file"):
        node_check.check_nodes(storage, versions, needs)
    image.write_bytes(b"x")
    assert node_check.check_nodes(storage, versions, needs) == {}

    inspect = node_check._inspect_node

    def without_mount(storage: str, marker: str, needs: Needs) -> dict[str, Any]:
        here = ray.get_runtime_context().get_node_id() == small
        return inspect(storage, marker, replace(needs, samples=("/mount/image.png",)) if here else needs)

    monkeypatch.setattr(node_check, "_inspect_node", without_mount)
    found = node_check.check_nodes(storage, versions, needs)
    assert list(found) == [small]
    line = found[small]
    assert "cannot read /mount/image.png: No such file or directory; mount the images there; it is left out" in line
    resources = plan_resources(1.0, 0.0, None, left_out={small: line})
    assert (resources.cluster_cpus, resources.concurrent, resources.nodes) == (2.0, 2, 1)
