"""The same search on a cluster of two nodes, with a token, through `--address`."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from sctune.search.study.record import reports_of
from tests.s3_server import BUCKET, S3Server

SERVE = """
import json, os, signal, sys
from sctune.search.cluster.connection import prepare_environment
prepare_environment()
os.environ["RAY_AUTH_MODE"] = sys.argv[2]
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=json.loads(sys.argv[1]))
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
frozen = []
for line in sys.stdin:
    asked = json.loads(line)
    node = cluster.add_node(**asked["node"])
    if asked["freeze"]:
        frozen.append(node.all_processes["raylet"][0].process.pid)
        os.kill(frozen[-1], signal.SIGSTOP)
    print(node.node_id, flush=True)
for pid in frozen:
    os.kill(pid, signal.SIGCONT)
cluster.shutdown()
"""
"""A head and one node, and one more for every line of its input; ends with that."""

PLANTED = Path(__file__).resolve().parents[1] / "planted"
REPOSITORY = PLANTED.parents[1]


class Nodes:
    """A cluster in a process of its own. head: arguments of its first node; env: of all nodes; mode: RAY_AUTH_MODE."""

    def __init__(self, sctune: Any, env: dict[str, str], head: dict[str, Any], mode: str = "token") -> None:
        self._sctune = sctune
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, json.dumps({"num_cpus": 1, **head}), mode],
            env={**sctune.env, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            cwd=sctune.home,
        )
        self.address = self._told(":")

    def add(self, node: dict[str, Any], freeze: bool = False) -> str:
        """Id of a further node of one CPU; freeze: it stops right after it has joined, and nobody knows yet."""
        assert self._process.stdin is not None
        print(json.dumps({"node": {"num_cpus": 1, **node}, "freeze": freeze}), file=self._process.stdin, flush=True)
        return self._told("")

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._sctune.end_group(self._process.pid)

    def _told(self, mark: str) -> str:
        assert self._process.stdout is not None
        return next(line for line in self._process.stdout if mark in line).strip()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def nodes(sctune: Any, store: S3Server) -> Iterator[Nodes]:
    """Two nodes of one CPU each on this machine, ended with the module."""
    # the cluster itself takes long to notice a node that hangs
    cluster = Nodes(sctune, {**store.env, "RAY_health_check_failure_threshold": "100"}, {"include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="module")
def address(nodes: Nodes) -> str:
    return nodes.address


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


def test_an_address_where_nothing_listens_is_refused(sctune: Any, smoke: list[str]) -> None:
    nowhere = sctune(*smoke, "--name", "nowhere", "--address", "127.0.0.1:1", code=2).stderr
    assert nowhere.splitlines()[-1].startswith("sctune: cannot connect to Ray at 127.0.0.1:1")
    assert not sctune.study("nowhere").exists()


@pytest.fixture(scope="module")
def check(sctune: Any, store: S3Server) -> Any:
    """Runs `sctune cluster check` with the places of a search that are all right."""
    driver = type(sctune)(sctune.home)
    driver.env |= store.env

    def run(address: str, folder: Path, *more: object, code: int = 0) -> dict[str, Any]:
        places = ["--storage-path", f"s3://{BUCKET}/studies", "--tracking-uri", driver.home]
        places += ["--timeout", "300s"]  # all of them are one busy machine
        words = ["cluster", "check", "--address", address, "--profile", "smoke", "--data", folder, *places, *more]
        document: dict[str, Any] = driver.json(*words, code=code)
        return document

    return run


def states(document: dict[str, Any], state: str) -> dict[str, dict[str, str]]:
    """Node id (or `driver`) -> check -> line, of all checks in this state."""
    places = {"driver": document["driver"], **{node["id"]: node for node in document["nodes"]}}
    return {
        name: {one["check"]: f"{one['detail']}; {one['advice']}" for one in place["checks"] if one["state"] == state}
        for name, place in places.items()
    }


def test_nothing_is_found_on_a_healthy_cluster(check: Any, store: S3Server, address: str, image_folder: Path) -> None:
    document = check(address, image_folder, "--set", "runtime.device=cpu")
    assert document["healthy"] and document["format_version"] == 1 and document["address"] == address
    assert not any(states(document, "failed").values())
    driver, *found = states(document, "ok").values()
    assert {"versions", "data", "storage", "token", "MLflow", "database", "disk"} <= driver.keys()
    assert "the head refuses who has none" in driver["token"]
    assert len(found) == 2
    for node in found:
        assert {"answer", "versions", "clock", "data", "weights", "storage", "token", "ports"} <= node.keys()
        # one machine has one clock
        offset, bound = re.findall(r"([-+]?\d+\.\d) ms", node["clock"])
        assert abs(float(offset)) <= float(bound) + 1
    assert store.objects() == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_each_fault_is_found_where_it_is_and_a_search_does_not_begin(
    sctune: Any, smoke: list[str], check: Any, nodes: Nodes, store: S3Server, image_folder: Path, tmp_path: Path
) -> None:
    """Faults on nodes of their own beside two healthy ones: each is found there and nowhere else."""
    from sctune.backbones.weights import local_weights

    weights, image = local_weights("efficientnet_lite0"), image_folder / "train" / "good" / "000.png"
    other = tmp_path / "other"
    other.write_bytes(b"not what the driver has")
    temporary = str(Path(tempfile.gettempdir(), "ray"))
    (tmp_path / "optuna-4.9.9.dist-info").mkdir()
    (tmp_path / "optuna-4.9.9.dist-info" / "METADATA").write_text("Name: optuna\nVersion: 4.9.9\n")
    search = ["--name", "refused", "--address", nodes.address, "--storage-path", tmp_path / "shared"]

    def planted(faults: dict[str, Any], *first: Path) -> dict[str, str]:
        places = os.pathsep.join(map(str, (*first, PLANTED, REPOSITORY)))
        return {"PYTHONPATH": places, "SCTUNE_PLANTED": json.dumps(faults)}

    gone = nodes.add({"env_vars": planted({"files": {str(image): "/nowhere"}})})
    faults = {"clock": 400, "files": {str(weights): str(other), str(image): str(other)}, "full": temporary}
    env = planted(faults, tmp_path) | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    ill = nodes.add({"num_gpus": 1, "env_vars": env})
    refused = sctune(*smoke, *search, code=2).stderr.splitlines()[-1]
    assert re.match(r"sctune: node \S+ \(\S+\) has optuna 4\.9\.9 \(driver 5\.\S+\); install the same$", refused)
    assert not sctune.study("refused").exists() and not (tmp_path / "shared").exists()

    services = ["--tracking-uri", "http://127.0.0.1:1", "--storage", "postgresql://sctune@127.0.0.1:1/studies"]
    document = check(nodes.address, image_folder, *services, "--publish", "never", code=2)
    failed = states(document, "failed")
    assert {name: set(found) for name, found in failed.items() if found} == {
        "driver": {"MLflow", "database"},
        ill: {"versions", "clock", "data", "weights", "storage", "GPUs", "disk"},
        gone: {"data"},
    }
    assert len(failed) == 5
    assert "cannot read" in failed[gone]["data"] and "mount the images there" in failed[gone]["data"]
    assert failed[ill]["clock"].startswith("its clock is +40") or failed[ill]["clock"].startswith("its clock is +39")
    assert "hold something else than the driver's" in failed[ill]["data"]
    assert "Ray counts on 1 GPUs, and torch sees 0" in failed[ill]["GPUs"]
    assert "http://127.0.0.1:1 cannot be used" in failed["driver"]["MLflow"]
    assert store.objects() == []

    frozen = nodes.add({}, freeze=True)
    failed = states(check(nodes.address, image_folder, "--timeout", "20s", code=2), "failed")
    assert set(failed[frozen]) == {"answer"} and "no answer within 20 s; look at" in failed[frozen]["answer"]
    assert store.objects() == []


def test_a_cluster_that_asks_for_no_token_is_found(sctune: Any, check: Any, image_folder: Path, tmp_path: Path) -> None:
    """With its dashboard open to everybody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = {"include_dashboard": True, "dashboard_host": "0.0.0.0", "dashboard_port": port}
    cluster = Nodes(sctune, {}, page, "disabled")
    try:
        document = check(cluster.address, image_folder, "--storage-path", tmp_path, code=2)
        failed = states(document, "failed")
        assert "Ray's head answers without a token" in failed["driver"]["token"]
        assert f":{port} answers without a token; start every node" in failed["driver"]["ports"]
    finally:
        cluster.end()
