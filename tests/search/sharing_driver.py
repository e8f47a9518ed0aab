"""A driver of its own process for `test_sharing_in_ray.py`: trials without end whose epochs are a short sleep.

Arguments: folder, name, address of the cluster, weight on it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from sctune.config import load_profile
from sctune.search.cluster.board import Board
from sctune.search.cluster.connection import Resources, prepare_environment, usable_nodes
from sctune.search.cluster.shares import Claim
from sctune.search.run import launch
from sctune.search.run.controller import TrialController
from sctune.search.run.slots import ClusterSlots
from sctune.search.study.manifest import SchedulerSpec
from sctune.search.study.study import Study
from sctune.trial import trainable
from tests.builders import make_manifest, make_space
from tests.search.test_faults_in_ray import EPOCHS, make_trial


def main(root: Path, name: str, address: str, weight: float) -> None:
    def sleeps(trial: Any, epoch: int) -> None:
        time.sleep(0.3)

    trainable.SaliencyCutTrainable = make_trial(sleeps)  # type: ignore[misc]
    ray.init(address, log_to_driver=False, logging_level="CRITICAL")
    base = load_profile("cpu").override({"budget.epochs": EPOCHS, "runtime.device": "cpu"})
    parameters = {"augment.threshold": {"type": "float", "low": 0.1, "high": 0.9}}
    space = make_space(root, base, parameters=parameters, set={"model.weights": "random"})
    manifest = make_manifest(
        space, name=name, trials=10_000, storage_path=str(root / "store"), scheduler=SchedulerSpec(name="none")
    )
    study = Study.create(root / "studies", manifest)
    claim = Claim(name, name, "u@h", weight, 1.0, 0.0)
    lines = (root / "lines").open("a", buffering=1)
    slots = ClusterSlots(Board(), claim, usable_nodes, None, 2, lambda line: print(line, file=lines))
    controller = TrialController(manifest, study.manifest.build_space(), study.record, slots=slots)
    with slots:
        launch.tune_trials(study, space, {}, Resources(2.0, 0.0, 1.0, 0.0, 2, 1), controller)


if __name__ == "__main__":
    prepare_environment()
    folder, name, address, weight = sys.argv[1:]
    with pytest.MonkeyPatch.context():
        main(Path(folder), name, address, float(weight))
