"""Studies for the tests of the pages: recorded trials with scores that were not trained for, and trained ones."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from sctune.config import Task, TrialConfig
from sctune.data.split import split_for
from sctune.report import EpochReport, merge_reports
from sctune.search.space.definition import Space
from sctune.search.study.content import content_digest
from sctune.search.study.manifest import DataSpec, SchedulerSpec, SelectionSpec
from sctune.search.study.splits import selection_labels, study_splits
from sctune.search.study.study import Study
from sctune.train.trainer import Trainer
from sctune.trial.checkpoint import TrialStore
from tests.builders import make_manifest

SPACE = {
    "name": "two",
    "parameters": {
        "augment.threshold": {"type": "float", "low": 0.1, "high": 0.9},
        "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
    },
}


def make_study(
    root: Path, config: TrialConfig, name: str = "small", space: Mapping[str, Any] = SPACE, **changes: Any
) -> Study:
    """A study of one task without trials; its tracking store does not exist. changes: of the manifest."""
    task = Task(source=config.data.source, setting=config.data.setting, seed=42)
    split = split_for(config.for_task(task), task)
    fields: dict[str, Any] = {
        "name": name,
        "profile": "smoke",
        "tasks": (task,),
        "scheduler": SchedulerSpec(name="asha", grace=1, factor=2),
        "trials": 6,
        "selection": SelectionSpec(mode=split.mode, reason="because"),
        "splits": {task.key: split.digest},
        "data": DataSpec(
            name="stripes", digest=content_digest({task.key: split}), licence="none", attribution="Stripes by nobody"
        ),
        "storage_path": str(root / name),
        "tracking_uri": f"sqlite:///{root / 'gone.db'}",
    }
    return Study.create(root, make_manifest(Space.from_dict(space, config), **fields | changes))


def drawn_scores(study: Study, shift: float, seed: int = 0) -> dict[str, list[float]]:
    """Scores of the selection images, anomalies higher by `shift` standard deviations."""
    labels = selection_labels(study.manifest, study_splits(study.manifest))
    random = np.random.default_rng(seed)
    return {key: (random.normal(size=len(row)) + shift * np.array(row)).tolist() for key, row in labels.items()}


def record_trial(
    study: Study,
    number: int,
    state: TrialState,
    params: Mapping[str, Any],
    epochs: int = 2,
    scores: Mapping[str, Sequence[float]] | None = None,
    failure: Mapping[str, str] | None = None,
    seconds: float = 10.0,
) -> float | None:
    """A trial that took `seconds` for each epoch; its value is the objective of the scores, 0.5 without."""
    space = study.manifest.build_space()
    known = space.by_name
    stored = {name: known[name].encode(value) for name, value in params.items()}
    trial = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=stored,
        distributions={name: known[name].distribution() for name in params},
        user_attrs={"params": dict(params), "attempt": 1, "launch": 0},
    )
    trial.number, trial.datetime_start = number, datetime.datetime(2026, 1, 1, 0, number // 60, number % 60)
    study.record.start(trial)
    value, objective = 0.5, study.objective
    if scores:
        labels = selection_labels(study.manifest, study_splits(study.manifest))
        value = float(np.mean([objective.value(labels[key], scores[key]) for key in labels]))
    for epoch in range(1, epochs + 1):
        metrics = {objective.metric: value, "seconds": seconds}
        told = EpochReport(epoch, epochs, metrics, dict(scores or {}), objective.name)
        study.record.report(number, told, 1000 * epoch)
    told_value = None if state is TrialState.FAIL else value
    if state is not TrialState.RUNNING:
        attrs = {"stop_reason": "told"} | ({"failure": dict(failure)} if failure else {})
        study.record.finish(number, state, told_value, attrs)
    study.record.flush()
    return told_value


def train_trial(study: Study, number: int, params: Mapping[str, Any], keep: bool = True) -> None:
    """Train one epoch, record it as a full run; keep: its checkpoint."""
    config = study.manifest.config_of(params)
    trainers = {task.key: Trainer(config, task) for task in study.manifest.tasks}
    report = merge_reports({key: trainer.run_epoch() for key, trainer in trainers.items()})
    if keep:
        states = {key: trainer.state() for key, trainer in trainers.items()}
        TrialStore(study.manifest.storage_path, number).save(1, 1, states, report.to_dict())
    record_trial(study, number, TrialState.COMPLETE, params, 1, report.scores)
