"""Every sampler with every form of space, through the real Ray Tuner: truthful states, no repeats, no gaps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from sctune.errors import ConfigError
from sctune.metrics.objective import AUROC
from sctune.report import FAILURE, OBJECTIVE, REPORT, VALUE, EpochReport, TrialFailure
from sctune.search.cluster.connection import RAY_ENVIRONMENT
from sctune.search.rules.registry import make_rule
from sctune.search.run.controller import TrialController
from sctune.search.run.ray_scheduler import RuleScheduler
from sctune.search.run.searcher import StudySearcher
from sctune.search.study.leaderboard import best_row, leaderboard
from sctune.search.study.manifest import SchedulerSpec
from sctune.search.study.study import Study
from sctune.search.suggest.samplers import SAMPLERS
from tests.builders import ANYWHERE, make_manifest, make_space

EPOCHS = 3
FAILS = 4
FLAT = {
    "augment.threshold": {"type": "float", "low": 0.1, "high": 0.9},
    "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
    "model.patch_count": {"type": "int", "low": 2, "high": 6},
}
CONDITIONAL = {
    "augment.kind": {"type": "categorical", "choices": ["saliencycut", "none"]},
    "augment.threshold": {
        "type": "float",
        "low": 0.1,
        "high": 0.9,
        "step": 0.1,
        "when": {"augment.kind": "saliencycut"},
    },
    "model.patch_count": {"type": "int", "low": 2, "high": 6},
}
ORDINAL = {
    "augment.grid_size": {"type": "ordinal", "choices": [4, 6, 8, 12, 16, 18, 24]},
    "model.top_k": {"type": "ordinal", "choices": [0.02, 0.05, 0.1, 0.2, 0.3, 0.5]},
}
GRID = {
    "augment.threshold": {"values": [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]},
    "model.patch_count": {"values": [2, 3, 4]},
}
# beyond the random start of every sampler (10 trials at most); the grid has 21 points
SPACES = {"flat": (FLAT, 16), "conditional": (CONDITIONAL, 16), "ordinal": (ORDINAL, 16), "grid": (GRID, 50)}

# one form for each sampler beside all of tpe's; the other pairs are slow only for their number (6 to 10 s each)
FAST = {
    ("gp", "ordinal"),
    ("cmaes", "flat"),
    ("nsga2", "conditional"),
    ("qmc", "flat"),
    ("random", "grid"),
    ("grid", "conditional"),
}
PAIRS = [
    pytest.param(
        sampler,
        form,
        id=f"{sampler}-{form}",
        marks=[] if sampler == "tpe" or (sampler, form) in FAST else [pytest.mark.slow],
    )
    for sampler in SAMPLERS
    for form in SPACES
]


def make_trainable() -> type[tune.Trainable]:
    """Local, so that it travels to the workers by value."""

    class Cheap(tune.Trainable):
        """Three epochs of a fixed function of the parameters; trial FAILS reports an error of its own."""

        def setup(self, config: dict[str, Any]) -> None:
            self.trial, self.epoch = config, 0

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            import json
            import zlib

            self.epoch += 1
            mixed = zlib.crc32(json.dumps(self.trial["params"], sort_keys=True).encode()) / 2**32
            value = 0.5 + 0.4 * mixed + 0.01 * self.epoch
            if self.trial["number"] == FAILS and self.epoch == 2:
                failure = TrialFailure("nonfinite", "loss is nan", "Traceback")
                return {VALUE: float("nan"), FAILURE: failure, "done": True}
            metrics = {OBJECTIVE: value, f"{OBJECTIVE}/seed42": value, "seconds": 0.01}
            report = EpochReport(self.epoch, EPOCHS, metrics, {"seed42": [0.25, value]})
            return {VALUE: value, REPORT: report, "done": report.last}

    return Cheap


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        # "local": never the cluster that somebody else may be running on this machine
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


def make_study(root: Path, parameters: dict[str, Any], sampler: str, trials: int) -> Study:
    manifest = make_manifest(
        make_space(root, parameters=parameters, set=ANYWHERE),
        name="contract",
        sampler=sampler,
        scheduler=SchedulerSpec(name="asha", grace=1, factor=2),
        trials=trials,
        storage_path=str(root / "store"),
    )
    Study.create(root / "studies", manifest)
    return Study.open(root / "studies", "contract")


def run_launch(study: Study, controller: TrialController) -> None:
    tune.Tuner(
        make_trainable(),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(controller),
            scheduler=RuleScheduler(controller.decide),
            num_samples=-1,
            max_concurrent_trials=2,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="launch",
            storage_path=study.manifest.storage_path,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    ).fit()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("sampler", "form"), PAIRS)
def test_contract(cluster: None, tmp_path: Path, sampler: str, form: str) -> None:
    parameters, trials = SPACES[form]
    study = make_study(tmp_path, parameters, sampler, trials)
    if sampler == "grid" and form == "flat":
        with pytest.raises(ConfigError, match="continuous"):
            TrialController(study.manifest, study.manifest.build_space(), study.record)
        return
    rule = make_rule("asha", EPOCHS, 1, 2, 0)
    controller = TrialController(study.manifest, study.manifest.build_space(), study.record, rule=rule)
    run_launch(study, controller)
    stored = study.record.load()
    expected = 21 if form == "grid" else trials
    assert [trial.number for trial in stored] == list(range(expected))
    assert controller.exhausted == ("space exhausted after 21 of 50" if form == "grid" else None)
    keys = [controller.space.key(trial.user_attrs["params"]) for trial in stored]
    assert len(set(keys)) == expected
    states = {}
    for trial in stored:
        epochs = sorted(trial.intermediate_values)
        states[trial.number] = trial.state.name
        if trial.number == FAILS:
            # stopped by the rule after its first epoch, or failed in its second
            assert trial.state.name in ("FAIL", "PRUNED")
            assert (trial.state.name == "FAIL") == ("failure" in trial.user_attrs)
            continue
        assert epochs == list(range(1, epochs[-1] + 1))
        assert trial.state.name == ("COMPLETE" if epochs[-1] == EPOCHS else "PRUNED")
        assert trial.value == trial.intermediate_values[epochs[-1]]
        assert trial.user_attrs["scores"] == {"seed42": [0.25, trial.value]}
        assert trial.user_attrs[f"report:{epochs[-1]}"]["metrics"][f"{OBJECTIVE}/seed42"] == trial.value
        assert controller.space.decode(trial.params) == trial.user_attrs["params"]
    assert "COMPLETE" in states.values()
    assert "PRUNED" in states.values()
    in_memory = controller.suggester.trials()
    assert states == {trial.number: trial.state.name for trial in in_memory}
    assert [t.value for t in stored] == [t.value for t in in_memory]
    assert [t.params for t in stored] == [t.params for t in in_memory]
    assert [t.intermediate_values for t in stored] == [t.intermediate_values for t in in_memory]
    best = best_row(leaderboard(stored, AUROC), AUROC)
    assert best is not None
    assert best.value == max(trial.value for trial in in_memory if trial.state.name == "COMPLETE")
    study.record.close()
