"""A driver of its own process for `test_sharing_in_ray.py`: trials without end whose epochs are a sleep.

Arguments: folder, name, address of the cluster, seconds of an epoch, and of the patience and the turns of the drivers.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import ray

from sctune.config import load_profile
from sctune.search.cluster import shares
from sctune.search.cluster.board import Board
from sctune.search.cluster.connection import Resources, prepare_environment, usable_nodes
from sctune.search.cluster.shares import Claim
from sctune.search.run import launch
from sctune.search.run import slots as slots_of_launch
from sctune.search.run.controller import TrialController
from sctune.search.run.slots import ClusterSlots
from sctune.search.study.manifest import SchedulerSpec
from sctune.search.study.study import Study
from sctune.trial import trainable
from tests.builders import make_manifest, make_space
from tests.search.test_faults_in_ray import EPOCHS, make_trial


def main(root: Path, name: str, address: str, seconds: float, patience: float) -> None:
    log = root / "epochs"

    def sleeps(trial: Any, epoch: int) -> None:
        time.sleep(seconds)
        with open(log, "a") as file:
            file.write(f"{trial.number} {epoch} {trial.attempt}\n")

    slots_of_launch.PATIENCE_S = shares.TURN_S = patience

    trainable.SaliencyCutTrainable = make_trial(sleeps)  # type: ignore[misc]
    ray.init(address, log_to_driver=False, logging_level="CRITICAL")
    base = load_profile("cpu").override({"budget.epochs": EPOCHS, "runtime.device": "cpu"})
    parameters = {"augment.threshold": {"type": "float", "low": 0.1, "high": 0.9}}
    space = make_space(root, base, parameters=parameters, set={"model.weights": "random"})
    manifest = make_manifest(
        space,
        name=name,
        trials=10_000,
        storage_path=str(root / "store"),
        scheduler=SchedulerSpec(name="none"),
        checkpoint_interval=0.0,
    )
    study = Study.create(root / "studies", manifest)
    claim = Claim(name, name, "u@h", 1.0, 1.0, 0.0, since=str(time.time()))
    lines = (root / "lines").open("a", buffering=1)
    slots = ClusterSlots(Board(), claim, usable_nodes, None, 2, lambda line: print(line, file=lines))
    controller = TrialController(manifest, study.manifest.build_space(), study.record, slots=slots)
    with slots:
        launch.tune_trials(study, space, {}, Resources(2.0, 0.0, 1.0, 0.0, 2, 1), controller)


if __name__ == "__main__":
    prepare_environment()
    folder, name, address, seconds, patience = sys.argv[1:]
    main(Path(folder), name, address, float(seconds), float(patience))
