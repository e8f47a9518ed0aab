"""What the driver holds of trials that have ended: nothing of Ray's, however they ended."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import ray

from sctune.config import load_profile
from sctune.search.cluster.connection import RAY_ENVIRONMENT, Resources
from sctune.search.run import faults, launch
from sctune.search.run.controller import TrialController
from sctune.search.run.ray_scheduler import RuleScheduler
from sctune.search.study.manifest import SchedulerSpec
from sctune.search.study.study import Study
from sctune.trial import trainable
from tests.builders import make_manifest, make_space
from tests.search.test_faults_in_ray import make_trial

TRIALS, SLOTS = 14, 2

made: list[weakref.ref[Any]] = []
alive: list[int] = []


class Counting(RuleScheduler):
    """How many of Ray's trials there are whenever it makes one."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        made.append(weakref.ref(trial))
        gc.collect()
        alive.append(sum(one() is not None for one in made))


def fails(trial: Any, epoch: int) -> None:
    if trial.number % 4 == 1:
        raise ValueError("a trial that tells its own failure")
    if trial.number == 2 and trial.attempt == 1:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(180)
def test_ray_keeps_no_trial_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "RuleScheduler", Counting)
    monkeypatch.setattr(faults, "RETRY_PAUSES_S", (0.1,))
    monkeypatch.setattr(trainable, "SaliencyCutTrainable", make_trial(fails))
    base = load_profile("cpu").override({"budget.epochs": 3, "runtime.device": "cpu"})
    values = [round(0.1 + 0.02 * number, 2) for number in range(TRIALS)]
    space = make_space(
        tmp_path, base, parameters={"augment.threshold": {"values": values}}, set={"model.weights": "random"}
    )
    manifest = make_manifest(
        space,
        sampler="grid",
        scheduler=SchedulerSpec(name="none"),
        trials=TRIALS,
        storage_path=str(tmp_path / "store"),
    )
    study = Study.create(tmp_path / "studies", manifest)
    controller = TrialController(manifest, study.manifest.build_space(), study.record)
    ray.init("local", num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
    try:
        launch.tune_trials(study, space, {}, Resources(SLOTS, 0.0, 1.0, 0.0, SLOTS, 1), controller)
    finally:
        ray.shutdown()
    states = [trial.state.name for trial in study.record.load()]
    study.record.close()
    assert [states[number] for number in range(4)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert states.count("FAIL") == 4 and len(states) == TRIALS
    # the one whose worker was killed was given to Ray twice
    assert len(alive) == TRIALS + 1
    # those that run, the new one, and one that ended a moment ago
    assert max(alive) <= SLOTS + 2
