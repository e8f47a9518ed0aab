"""A reference as its worker runs it: one task, scored as a trial is, and an error that is told and not raised."""

from __future__ import annotations

from pathlib import Path

import pytest

from sctune.config import Task, TrialConfig
from sctune.data.split import split_for
from sctune.report import EpochReport
from sctune.train.trainer import Trainer
from sctune.trial.building import TrialSpec
from sctune.trial.reference import run_reference

FIELDS = {"method.name": "gaussian"}


def make_spec(config: TrialConfig, root: Path, **changes: object) -> TrialSpec:
    tasks = [Task(source=config.data.source, seed=seed) for seed in (1, 2)]
    return TrialSpec(
        config=config.model_dump(),
        tasks=tasks,
        storage=str(root / "store"),
        cache=str(root / "cache"),
        checkpoint_epochs=[],
        checkpoint_interval=1e6,
        splits={task.key: split_for(config.for_task(task), task).digest for task in tasks},
        weights_sha256={},
        versions={},
    ).model_copy(update=changes)


@pytest.mark.parametrize("selection", ["extra", "test"])
def test_it_is_scored_as_a_trial_is(tiny: TrialConfig, tmp_path: Path, selection: str) -> None:
    """In mode `test` too, the paper's way: on the test images that select the trials."""
    config = tiny.override({"data.selection": selection})
    spec = make_spec(config, tmp_path)
    told = run_reference(spec.model_dump(), FIELDS, spec.tasks[1].key)
    report = EpochReport.from_dict(told["report"])
    trainer = Trainer(config.override(FIELDS), spec.tasks[1])
    own = trainer.run_epoch()
    assert report.scores == own.scores and report.value == own.value and report.last
    assert len(report.scores[spec.tasks[1].key]) == len(trainer.selection.paths)
    assert report.metrics["seconds"] > 0
    assert not (tmp_path / "store").exists(), "it leaves no checkpoint"


def test_an_error_is_told_with_its_traceback(tiny: TrialConfig, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_text("no weights")
    spec = make_spec(tiny.override({"model.weights": str(weights)}), tmp_path)
    told = run_reference(spec.model_dump(), FIELDS, spec.tasks[0].key)
    assert told.keys() == {"failure", "log", "node"} and told["failure"]["kind"] == "WeightsError"
    assert "\n" not in told["failure"]["message"] and str(weights) in told["failure"]["message"]
    assert any(line.startswith("Traceback") for line in told["log"])


def test_a_node_with_other_images_gives_no_value(tiny: TrialConfig, tmp_path: Path) -> None:
    spec = make_spec(tiny, tmp_path)
    key = spec.tasks[0].key
    other = spec.model_copy(update={"contents": {key: "0" * 64}})
    assert run_reference(other.model_dump(), FIELDS, key)["failure"]["kind"] == "ChangedDataError"
