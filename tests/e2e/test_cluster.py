"""The same search on a cluster of two nodes, with a token, through `--address`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from sctune.search.study.record import reports_of

SERVE = """
import sys
from sctune.search.cluster.connection import prepare_environment
prepare_environment()
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

CHECK = """
import sys
from dataclasses import replace
from sctune.search.cluster.connection import plan_resources, prepare_environment
from sctune.search.cluster import node_check
prepare_environment()
import ray
from sctune.data.place import Needs
from sctune.errors import ClusterError
from sctune.trial.building import package_versions
address, storage, image, cache = sys.argv[1:]
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
versions, needs = package_versions(), Needs((image,), cache, 1000)
assert node_check.check_nodes(storage, versions, needs) == {}
for wrong in (
    lambda: node_check.check_nodes(storage, {**versions, "torch": "0.1"}, needs),
    lambda: node_check.check_nodes(storage, versions, replace(needs, samples=("/mount/image.png",))),
):
    try:
        wrong()
    except ClusterError as problem:
        print(problem)

inspect, other = node_check._inspect_node, ray.nodes()[0]["NodeID"]

def without_mount(storage, marker, needs):
    here = ray.get_runtime_context().get_node_id() == other
    return inspect(storage, marker, replace(needs, samples=("/mount/image.png",)) if here else needs)

node_check._inspect_node = without_mount
left_out = node_check.check_nodes(storage, versions, needs)
assert list(left_out) == [other]
print(left_out[other])
resources = plan_resources(1.0, 0.0, None, left_out=left_out)
print(resources.cluster_cpus, resources.concurrent, resources.nodes)
"""


@pytest.fixture(scope="module")
def address(sctune: Any) -> Iterator[str]:
    """Two nodes of one CPU each on this machine, ended with the module."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        env=sctune.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        cwd=sctune.home,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield next(line for line in process.stdout if ":" in line).strip()
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        finally:
            sctune.end_group(process.pid)


def times(trial: FrozenTrial) -> tuple[int, int]:
    """When a trial's first and its last epoch were told, in ms."""
    told = [report["time"] for report in reports_of(trial).values()]
    return min(told), max(told)


@pytest.mark.timeout(600)
def test_a_search_uses_both_nodes(sctune: Any, smoke: list[str], address: str, runs_of: Any, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    more = ["--name", "cluster", "--address", address, "--storage-path", shared, "--scheduler", "none"]
    more += ["--set", "budget.iterations=20"]
    done = sctune(*smoke, *more, "--trials", "2", "--json")
    assert "of 2 CPUs and 0 GPUs on 2 node(s)" in done.stderr
    reachable = not address.startswith("127.")
    assert ("keep the ports behind a firewall" in done.stderr) == reachable
    trials = json.loads(done.stdout)["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 2
    # a node has one CPU and a trial takes one: two that trained at the same time trained on both nodes
    (first, second), (other_first, other_second) = (times(trial) for trial in sctune.record("cluster"))
    assert max(first, other_first) < min(second, other_second)
    assert runs_of("cluster").keys() == {None, 0, 1}
    assert {path.name for path in (shared / "cluster" / "trials").iterdir()} == {"00000", "00001"}


def test_another_token_is_refused_with_the_way_out(sctune: Any, smoke: list[str], address: str) -> None:
    stranger = type(sctune)(sctune.home)
    stranger.env |= {"RAY_AUTH_TOKEN": "0" * 64}
    refused = stranger(*smoke, "--name", "stranger", "--address", address, code=2).stderr
    assert refused.splitlines()[-1].startswith(f"sctune: Ray at {address} does not take this token; copy ")
    assert not sctune.study("stranger").exists()


def test_nodes_are_looked_at_before_a_search(sctune: Any, address: str, tmp_path: Path) -> None:
    """Other versions are refused everywhere, missing images on all nodes too; on one of them, it is left out."""
    (tmp_path / "image.png").write_bytes(b"x")
    checked = subprocess.run(
        [
            sys.executable,
            "-c",
            CHECK,
            address,
            *map(str, (tmp_path / "shared", tmp_path / "image.png", tmp_path / "cache")),
        ],
        env=sctune.env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    versions, images, lacking, resources = checked.stdout.splitlines()
    assert versions.startswith("node ") and "torch" in versions and versions.endswith("install the same")
    assert images.startswith("no node can run trials: node ") and "cannot read /mount/image.png: No such file" in images
    assert "cannot read /mount/image.png: No such file or directory; mount the images there; it is left out" in lacking
    assert resources == "1.0 1 1"
    assert not list(tmp_path.rglob("*probe*"))


def test_an_address_where_nothing_listens_is_refused(sctune: Any, smoke: list[str]) -> None:
    nowhere = sctune(*smoke, "--name", "nowhere", "--address", "127.0.0.1:1", code=2).stderr
    assert nowhere.splitlines()[-1].startswith("sctune: cannot connect to Ray at 127.0.0.1:1")
    assert not sctune.study("nowhere").exists()
