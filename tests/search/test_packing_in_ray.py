"""Trials that share cards in a real Ray whose two GPUs are simulated: tried first, packed, held to their share."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from sctune.config import Task, TrialConfig
from sctune.data.split import Split
from sctune.errors import ClusterError
from sctune.report import EpochReport
from sctune.search.cluster.connection import RAY_ENVIRONMENT, plan_resources
from sctune.search.cluster.resources import TrialResources
from sctune.search.plan.options import SearchOptions
from sctune.search.run import launch, sharing
from sctune.search.run.controller import TrialController
from sctune.search.run.driver import resume, run_search
from sctune.search.run.faults import Faults
from sctune.search.run.measuring import Workers, check_auto
from sctune.search.run.plan_lines import plan_lines
from sctune.search.run.sharing import packing_of, shared
from sctune.search.study.manifest import SchedulerSpec, StudyManifest
from sctune.search.study.study import Study
from sctune.trial import trainable
from tests import cards
from tests.builders import make_manifest, make_space
from tests.cards import SimulatedCard

GIB = 2**30
TOTAL = 8 * GIB
PEAKS = {64: 1.2, 128: 2.5}
"""GiB that a class takes where it is tried: 1.2 x 1.2 + 0.75 = 2.19 of 8, and 1.2 x 2.5 + 0.75 = 3.75."""
GREEDY = 0.4
"""The threshold of which a trial of 64 px takes twice as much as its class did."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    # the workers need not find the tests
    ray.cloudpickle.register_pickle_by_value(cards)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(
            "local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL"
        )
        yield
        ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(cards)


def simulated_workers(folder: Path) -> Workers:
    """Workers with a simulated card, whose memory a step takes by its class; each try is written down."""
    peaks, total, tries = dict(PEAKS), TOTAL, folder / "tries"

    def look_there() -> dict[str, Any]:
        from sctune.search.run.card_probe import look

        return look(SimulatedCard.given(folder, total))

    def try_there(asked: Mapping[str, Any]) -> dict[str, Any]:
        from sctune.search.run.card_probe import try_class
        from sctune.train.trainer import Trainer

        card = SimulatedCard.given(folder, total)

        def time_step(trainer: Trainer) -> tuple[float, int]:
            side = trainer.config.data.image_size
            with tries.open("a") as file:
                file.write(f"{side}\n")
            card.allocate(int(peaks[side] * 2**30))
            return 0.1, 2

        Trainer.time_step = time_step  # type: ignore[method-assign]
        try:
            return try_class(asked, card)
        finally:
            card.free()

    return Workers(look_there, try_there)


def make_trial(folder: Path) -> type[trainable.SaliencyCutTrainable]:
    """A trial whose epochs take a simulated card's memory, and wait in the first for a neighbour on it."""
    peaks, total, greedy = dict(PEAKS), TOTAL, GREEDY

    class Taking:
        device = "cuda"

        def __init__(self, config: TrialConfig, task: Task, card: SimulatedCard) -> None:
            self.config, self.task, self.card, self.epoch = config, task, card, 0

        def run_epoch(self) -> EpochReport:
            import time

            if self.epoch == 0:
                twice = 2 if self.config.data.image_size == 64 and self.config.augment.threshold == greedy else 1
                self.card.allocate(int(twice * peaks[self.config.data.image_size] * 2**30))
                end = time.monotonic() + 30
                while self.card.seen()[0] < 2 and time.monotonic() < end:
                    time.sleep(0.1)
            self.epoch += 1
            metrics = {"selection_auroc": 0.5, "gpu_reserved_mb": self.card.reserved() / 2**20}
            return EpochReport(self.epoch, 2, metrics, {self.task.key: [0.5]})

        def state(self) -> Any:
            import torch

            return {"weight": torch.zeros(1)}, {"epoch": self.epoch}

        def load_state(self, tensors: Any, meta: Any) -> None:
            self.epoch = meta["epoch"]

    class OnCard(trainable.SaliencyCutTrainable):
        simulated: SimulatedCard | None = None

        def _card(self) -> SimulatedCard:
            if self.simulated is None:
                self.simulated = SimulatedCard.given(folder, total)
            return self.simulated

        def _build(self, course: Any) -> Any:
            config = TrialConfig.load(self.spec.config).override(self.params)
            return [Taking(config, task, self._card()) for task in course.tasks]

        def _let_go(self) -> None:
            super()._let_go()
            if self.simulated is not None:
                self.simulated.free()

    return OnCard


def empty_split(root: Path) -> Split:
    return Split(root, "extra", "", (), (), (), (), False, (), ())


def test_what_cannot_be_measured_is_refused() -> None:
    base = TrialConfig()
    check_auto(base, 1.0)
    with pytest.raises(ClusterError, match="no node has a GPU"):
        check_auto(base, 0.0)
    with pytest.raises(ClusterError, match=r"runtime\.device=cpu"):
        check_auto(base.override({"runtime.device": "cpu"}), 1.0)


@pytest.mark.timeout(400)
def test_trials_share_cards_by_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainable, "SaliencyCutTrainable", make_trial(tmp_path))
    base = TrialConfig().override(
        {
            "model.backbone": "efficientnet_lite0",
            "model.weights": "random",
            "model.tap": "middle",
            "model.n_scales": 1,
            "model.patch_place": "grid2d",
            "augment.grid_size": 8,
            "budget.epochs": 2,
            "budget.batch_size": 6,
        }
    )
    parameters = {
        "data.image_size": {"values": [64, 128]},
        "augment.threshold": {"values": [0.2, GREEDY, 0.6]},
    }
    space = make_space(tmp_path, base, parameters=parameters)
    scheduler = SchedulerSpec(name="none")
    manifest = make_manifest(space, sampler="grid", scheduler=scheduler, trials=6, storage_path=str(tmp_path / "store"))
    splits = {"seed42": empty_split(tmp_path)}
    whole = plan_resources(0.5, None, None)
    assert (whole.gpus, whole.concurrent) == (1.0, 2)

    def share() -> Any:
        workers = simulated_workers(tmp_path)
        return shared(manifest, space, splits, manifest.resources, whole, None, None, workers)

    resources, spec, lines = share()
    assert lines == () and spec.packed
    # by the smaller class: three on each card
    assert resources.concurrent == 6
    assert {need.image_size: need.peak_bytes for need in spec.needs} == {
        side: int(size * GIB) for side, size in PEAKS.items()
    }
    assert {need.card for need in spec.needs} == {"Simulated, 8 GiB"}
    manifest = manifest.model_copy(update={"resources": spec})
    study = Study.create(tmp_path / "studies", manifest)
    judge = Faults(TrialResources(0.5, 1.0), TrialResources(4.0, 2.0), lambda _: True)
    packing = packing_of(spec, resources)
    controller = TrialController(manifest, space, study.record, (), judge, packing=packing)
    launch.tune_trials(study, space, {}, resources, controller)
    stored = study.record.load()
    study.record.close()
    assert [trial.state.name for trial in stored] == ["COMPLETE"] * 6
    # the greedy one ran into its own limit, and came back with more
    again = {trial.number: trial.user_attrs["share"] for trial in stored if trial.user_attrs["attempt"] > 1}
    assert again == {1: {"cpus": 0.5, "gpus": 0.6666}}
    seen = [SimulatedCard(tmp_path, TOTAL, index).seen() for index in "01"]
    assert max(most for most, _ in seen) >= 2
    assert [collisions for _, collisions in seen] == [0, 0]
    # a resumed study tries nothing again
    tries = (tmp_path / "tries").read_text()
    assert sorted(tries.split()) == ["128", "64"]
    assert share()[1].needs == spec.needs
    assert (tmp_path / "tries").read_text() == tries


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_search_and_its_resumes(tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = tmp_path / "tries"

    def look_there() -> dict[str, Any]:
        return {"name": "Simulated", "total": 8 * 2**30}

    def try_there(asked: Mapping[str, Any]) -> dict[str, Any]:
        with tries.open("a") as file:
            file.write("tried\n")
        return {"peak": 2**30, "context": 0, "step": 0.1, "epoch": 0.5}

    workers = Workers(look_there, try_there)
    monkeypatch.setattr(sharing, "shared", functools.partial(shared, workers=workers))
    space = tmp_path / "space.yaml"
    space.write_text("parameters:\n  augment.threshold: {values: [0.2, 0.4, 0.6]}\nset: {model.weights: random}\n")
    asked = {
        "space": str(space),
        "name": "packed",
        "profile": "smoke",
        "data": str(image_folder),
        "trials": 1,
        "gpus_per_trial": "auto",
        "overrides": {"budget.iterations": 1, "budget.epochs": 1},
        "study_root": tmp_path / "studies",
        "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
    }
    shown: list[str] = []
    run_search(SearchOptions(**asked), on_plan=lambda plan, resources: shown.extend(plan_lines(plan, resources)))
    # 1.2 + 0.75 of 8 GiB: four on each of two cards, but of four CPUs
    assert any(line.startswith("4 trial(s) at a time, each with 1 CPU and its share of a GPU") for line in shown)
    assert any("0.5 GPU (1024 MiB and 0.5 s an epoch alone on Simulated, 8 GiB)" in line for line in shown)

    def now() -> StudyManifest:
        return Study.open(tmp_path / "studies", "packed").manifest

    spec = now().resources
    assert (spec.packed, spec.gpus, spec.max_concurrent, len(spec.needs)) == (True, 1.0, 4, 1)
    assert tries.read_text() == "tried\n"
    resume("packed", study_root=tmp_path / "studies", more_trials=1)
    assert tries.read_text() == "tried\n" and now().resources == spec
    result = resume("packed", study_root=tmp_path / "studies", more_trials=1, gpus_per_trial=1.0)
    assert not now().resources.packed and now().resources.needs == spec.needs
    told = {row["number"]: (row["state"], row["gpus"]) for row in result.to_dict()["trials"]}
    assert told == {0: ("COMPLETE", 0.5), 1: ("COMPLETE", 0.5), 2: ("COMPLETE", None)}
