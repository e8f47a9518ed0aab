"""A spot notice in a real Ray: the node drains, its trial keeps its epoch, ends, and goes on on another node."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from sctune.config import load_profile
from sctune.search.cluster.connection import RAY_ENVIRONMENT, Resources, nodes_alive
from sctune.search.cluster.resources import TrialResources
from sctune.search.run import faults, launch
from sctune.search.run.controller import TrialController
from sctune.search.run.faults import Faults
from sctune.search.study.manifest import SchedulerSpec
from sctune.search.study.study import Study
from sctune.trial import trainable
from tests.builders import make_manifest, make_space
from tests.metadata_server import MetadataServer
from tests.processes import end_group
from tests.search.test_faults_in_ray import EPOCHS, make_trial

COMMAND = Path(sys.executable).with_name("sctune")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that runs no trials, and one worker of one CPU."""
    for name, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1)
        ray.init(made.address, log_to_driver=False, logging_level="CRITICAL")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def workers() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}


def start_worker(address: str) -> subprocess.Popen[bytes]:
    """Another worker of one CPU; Ray's own helper for tests starts nodes in the main thread only."""
    words = [str(COMMAND.with_name("ray")), "start", f"--address={address}", "--num-cpus=1", "--block"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(words, stdout=quiet, stderr=quiet, start_new_session=True)


def run_study(root: Path, monkeypatch: pytest.MonkeyPatch, trouble: Any) -> Any:
    """The one trial of a study whose checkpoints are never due before its end."""
    monkeypatch.setattr(trainable, "SaliencyCutTrainable", make_trial(trouble))
    monkeypatch.setattr(faults, "RETRY_PAUSES_S", (0.1,))
    base = load_profile("cpu").override({"budget.epochs": EPOCHS, "runtime.device": "cpu"})
    space = make_space(root, base, parameters={"augment.threshold": {"values": [0.3]}}, set={"model.weights": "random"})
    manifest = make_manifest(
        space,
        name="leaving",
        sampler="grid",
        scheduler=SchedulerSpec(name="none"),
        trials=1,
        storage_path=str(root / "store"),
        checkpoint_interval=1e6,
    )
    study = Study.create(root / "studies", manifest)
    judge = Faults(TrialResources(1.0, 0.0), TrialResources(1.0, 0.0), lambda node: node in nodes_alive())
    controller = TrialController(manifest, study.manifest.build_space(), study.record, (), judge)
    launch.tune_trials(study, space, {}, Resources(1.0, 0.0, 1.0, 0.0, 1, 2), controller)
    (trial,) = study.record.load()
    study.record.close()
    return trial


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


@pytest.mark.timeout(180)
def test_a_spot_notice_becomes_a_clean_stop(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, reached = tmp_path / "epochs", tmp_path / "reached"

    def trouble(trial: Any, epoch: int) -> None:
        import time

        with open(log, "a") as file:
            file.write(f"{epoch} {trial.attempt} {trial._node}\n")
        if (epoch, trial.attempt) == (2, 1):
            reached.touch()
            end = time.monotonic() + 90
            # in the middle of an epoch when the notice comes
            while not trial._is_leaving() and time.monotonic() < end:
                time.sleep(0.1)

    (first,) = workers()
    with MetadataServer() as server:
        environment = {**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url}
        words = [str(COMMAND), "cluster", "watch-spot", "--address", cluster.address]
        with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as watcher:
            later: list[subprocess.Popen[bytes]] = []
            try:

                def take_back() -> None:
                    until(reached.exists, 120)
                    server.announce(110)
                    watcher.wait(60)
                    later.append(start_worker(cluster.address))

                helper = threading.Thread(target=take_back)
                helper.start()
                trial = run_study(tmp_path, monkeypatch, trouble)
                helper.join()
                assert watcher.stderr is not None
                said = watcher.stderr.read()
                # with nothing on it the node ended by itself
                until(lambda: first not in nodes_alive())
                words = [str(COMMAND), "cluster", "leave", "--address", cluster.address, "--within", "60s"]
                left = subprocess.run(words, capture_output=True, text=True, check=False)
                assert (left.returncode, workers()) == (0, set()), left.stderr
                assert left.stderr == "this machine has left the cluster\n"
            finally:
                watcher.kill()
                for worker in later:
                    end_group(worker.pid)
    assert watcher.returncode == 0, said
    assert "AWS takes this instance back in 1" in said and "(terminate): its trials go on elsewhere" in said
    epochs = [line.split() for line in log.read_text().splitlines()]
    # nothing is trained twice though no checkpoint was due: the last epoch before the end was kept
    assert [(int(epoch), int(attempt)) for epoch, attempt, _ in epochs] == [(1, 1), (2, 1), (3, 2)]
    assert epochs[0][2] == first and epochs[2][2] != first
    assert trial.state.name == "COMPLETE" and sorted(trial.intermediate_values) == [1, 2, 3]
    assert trial.user_attrs["attempt"] == 2
