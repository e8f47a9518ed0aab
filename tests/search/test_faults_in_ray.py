"""Troubled trials in a real Ray with fake GPUs: the real exceptions, real kills, one epoch a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from optuna.trial import FrozenTrial

from sctune.config import Task, TrialConfig, load_profile
from sctune.report import EpochReport
from sctune.search.cluster.connection import RAY_ENVIRONMENT, Resources
from sctune.search.cluster.resources import TrialResources
from sctune.search.run import faults, launch
from sctune.search.run.controller import End, EndReason, TrialController
from sctune.search.run.faults import Faults
from sctune.search.study.manifest import SchedulerSpec
from sctune.search.study.study import Study
from sctune.trial import trainable
from sctune.trial.checkpoint import TrialStore
from tests.builders import make_manifest, make_space

EPOCHS = 3
THRESHOLDS = [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(
            "local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL"
        )
        yield
        ray.shutdown()


def make_trial(trouble: Any) -> type[trainable.SaliencyCutTrainable]:
    """A trial whose epochs are nothing; `trouble(trial, epoch)` runs in each. Local, so that it travels by value."""

    class Empty:
        device = "cpu"

        def __init__(self, config: TrialConfig, task: Task, trial: Any) -> None:
            self.config, self.task, self.trial, self.epoch = config, task, trial, 0

        def run_epoch(self) -> EpochReport:
            self.epoch += 1
            trouble(self.trial, self.epoch)
            value = self.config.augment.threshold + 0.1 * self.epoch
            return EpochReport(self.epoch, 3, {"selection_auroc": value}, {self.task.key: [value]})

        def state(self) -> Any:
            import torch

            return {"weight": torch.zeros(1)}, {"epoch": self.epoch}

        def load_state(self, tensors: Any, meta: Any) -> None:
            self.epoch = meta["epoch"]

    class Troubled(trainable.SaliencyCutTrainable):
        def _build(self, course: Any) -> Any:
            config = TrialConfig.load(self.spec.config).override(self.params)
            return [Empty(config, task, self) for task in course.tasks]

    return Troubled


def search(
    root: Path, monkeypatch: pytest.MonkeyPatch, trouble: Any, gpus: float, judge: Faults | None = None
) -> tuple[Any, list[Any]]:
    """The controller and the stored trials after five trials, a checkpoint after each epoch."""
    monkeypatch.setattr(trainable, "SaliencyCutTrainable", make_trial(trouble))
    monkeypatch.setattr(faults, "RETRY_PAUSES_S", (0.1,))
    # every worker takes seconds to start
    monkeypatch.setattr(faults, "MAX_WORKER_LOSSES", 1)
    base = load_profile("cpu").override({"budget.epochs": EPOCHS, "runtime.device": "cpu"})
    parameters = {"augment.threshold": {"values": THRESHOLDS}}
    space = make_space(root, base, parameters=parameters, set={"model.weights": "random"})
    manifest = make_manifest(
        space,
        name="troubled",
        sampler="grid",
        scheduler=SchedulerSpec(name="none"),
        trials=len(THRESHOLDS),
        storage_path=str(root / "store"),
        checkpoint_interval=0.0,
    )
    study = Study.create(root / "studies", manifest)
    resources = Resources(4.0, 1.0, 1.0, gpus, 3, 1)
    judge = judge or Faults(TrialResources(1.0, gpus), TrialResources(4.0, 1.0), lambda _: True)
    controller = TrialController(manifest, study.manifest.build_space(), study.record, (), judge)
    launch.tune_trials(study, space, {}, resources, controller)
    stored = study.record.load()
    study.record.close()
    return controller, stored


def curve(trial: FrozenTrial) -> list[float]:
    return [round(value, 6) for _, value in sorted(trial.intermediate_values.items())]


@pytest.mark.timeout(400)
def test_trials_in_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "epochs"

    def trouble(trial: Any, epoch: int) -> None:
        import os
        import signal

        import torch

        with open(log, "a") as file:
            file.write(f"{trial.number} {epoch} {trial.attempt}\n")
        share = trial.config["resources"]["gpus"]
        # trial 2 needs half a GPU from its second epoch on, trial 3 more than there is
        if (trial.number == 2 and epoch >= 2 and share < 0.5) or trial.number == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        # trial 1 takes its worker down once, trial 4 whenever it trains
        if (trial.number == 1 and epoch == 3 and trial.attempt == 1) or trial.number == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    controller, stored = search(tmp_path, monkeypatch, trouble, gpus=0.25)
    assert [trial.state.name for trial in stored] == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    assert [trial.user_attrs["attempt"] for trial in stored] == [1, 2, 2, 3, 2]
    assert stored[2].user_attrs["share"] == {"cpus": 1.0, "gpus": 0.5}
    assert [curve(trial) for trial in stored[1:3]] == [[0.3, 0.4, 0.5], [0.4, 0.5, 0.6]]
    failures = [trial.user_attrs["failure"] for trial in stored[3:]]
    assert [failure["kind"] for failure in failures] == ["out of memory", "lost"]
    assert "with 1 GPU, the most" in failures[0]["message"]
    assert controller.end == End(EndReason.DONE)
    # both went on from their last checkpoint
    lines = log.read_text().split("\n")
    assert [line for line in lines if line.startswith("1 ")] == ["1 1 1", "1 2 1", "1 3 1", "1 3 2"]
    assert [line for line in lines if line.startswith("2 ")] == ["2 1 1", "2 2 1", "2 2 2", "2 3 2"]
    names = TrialStore(str(tmp_path / "store"), 1).names()
    assert [(name.epoch, name.attempt) for name in names] == [(3, 2)]
