"""A confirmation of a study that was searched by a figure of which lower is better."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from sctune.config import Task
from sctune.confirm import outcome
from sctune.confirm.candidates import Candidate
from sctune.confirm.ranking import rank, task_values
from sctune.confirm.results import Confirmation, Ranked, confirmation_lines, read_confirmation, write_confirmation
from sctune.confirm.scoring import TaskScores
from sctune.metrics.statistics import Scores
from sctune.report import EpochReport
from sctune.search.study.study import Study
from tests.builders import ANYWHERE, FLAT, make_manifest, make_space

SEEDS = (1001, 1002)
TASKS = tuple(Task(seed=seed) for seed in SEEDS)
FALSE_ALARMS = {"trial-3": (0.4, 0.2), "trial-8": (0.1, 0.15)}


def trained_study(root: Path, objective: str = "fpr95") -> Study:
    """Two configurations on two seeds, recorded as their searches told them."""
    variants = {name: {"augment.threshold": 0.2 + 0.2 * number} for number, name in enumerate(FALSE_ALARMS)}
    manifest = make_manifest(make_space(root, variants=variants), name="c", tasks=TASKS, objective=objective)
    study = Study.create(root, manifest)
    metric = study.objective.metric
    for number, (name, values) in enumerate(FALSE_ALARMS.items()):
        attrs = {"params": {"variant": name}, "attempt": 1, "launch": 0}
        trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attrs)
        trial.number, trial.datetime_start = number, datetime(2026, 1, 1)
        study.record.start(trial)
        mean = sum(values) / len(values)
        parts = {f"{metric}/{task.key}": value for task, value in zip(TASKS, values, strict=True)}
        report = EpochReport(1, 1, {metric: mean, **parts}, objective=objective)
        study.record.report(number, report, 1 + number)
        study.record.finish(number, TrialState.COMPLETE, mean, {})
    study.record.flush()
    return study


def candidates() -> list[Candidate]:
    return [Candidate("trial-3", {}, 3, 0.05), Candidate("trial-8", {}, 8, 0.1)]


@pytest.mark.parametrize(("objective", "winner"), [("fpr95", "trial-8"), ("ap", "trial-3")])
def test_the_winner_has_the_best_mean_over_the_seeds(tmp_path: Path, objective: str, winner: str) -> None:
    study = trained_study(tmp_path, objective)
    rows, ranking, failed = rank(study, candidates())
    assert (ranking[0].name, failed) == (winner, [])
    assert ranking[0].seeds == dict(zip(SEEDS, FALSE_ALARMS[winner], strict=True))
    assert rows[winner].value == pytest.approx(ranking[0].mean)
    metrics = {study.objective.metric: 0.3, **{f"{study.objective.metric}/{task.key}": 0.5 for task in TASKS}}
    assert task_values(study, metrics) == {task.key: 0.5 for task in TASKS}
    study.record.close()


def confirmation(study: Study, objective: str) -> Confirmation:
    ranked = Ranked(
        name="trial-8",
        trial=8,
        fields={},
        mean=0.125,
        std=0.025,
        seeds=dict(zip(SEEDS, FALSE_ALARMS["trial-8"], strict=True)),
        search_value=0.1,
    )
    return Confirmation(
        study=study.name,
        study_id=study.manifest.study_id,
        confirm_study="c",
        written="2026-01-01T00:00:00+00:00",
        mode="extra",
        objective=objective,
        seeds=SEEDS,
        ranking=(ranked,),
        reference=None,
        false_alarm_rate=0.01,
    )


def scored(task: Task) -> TaskScores:
    labels = np.array([0, 0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.5, 0.4, 0.9])
    return TaskScores(task, Scores("set", "", tuple("abcde"), labels, scores, task.seed), (), "file.csv")


@pytest.mark.parametrize(("objective", "seed"), [("fpr95", 1001), ("auroc", 1002)])
def test_the_model_is_the_seed_that_selected_best(tmp_path: Path, objective: str, seed: int) -> None:
    study = Study.create(
        tmp_path, make_manifest(make_space(tmp_path, parameters=FLAT, set=ANYWHERE), objective=objective)
    )
    found = confirmation(study, objective)
    values = {task.key: value for task, value in zip(TASKS, FALSE_ALARMS["trial-8"], strict=True)}
    test = outcome.tested(found, [scored(task) for task in TASKS], [], [0, 0, 0, 1, 1], values)
    (model,) = test.models
    assert (model.seed, model.test_auroc) == (seed, pytest.approx(5 / 6))
    # false alarms minus an AUROC would be a difference of nothing
    expected = None if objective == "fpr95" else pytest.approx(0.125 - 5 / 6)
    assert test.optimism_confirm == expected and (test.optimism_search is None) == (objective == "fpr95")
    label = {"fpr95": "FPR95", "auroc": "AUROC"}[objective]
    lines = confirmation_lines(found.model_copy(update={"test": test}))
    assert lines[1] == f"  1. trial-8: selection {label} 0.1250 +- 0.0250 over seeds; the search saw 0.1000"
    assert any("optimism" in line for line in lines) == (objective == "auroc")


def test_the_default_objective_goes_without_saying_in_the_document(tmp_path: Path) -> None:
    study = Study.create(tmp_path, make_manifest(make_space(tmp_path, parameters=FLAT, set=ANYWHERE)))
    for objective in ("auroc", "fpr95"):
        found = confirmation(study, objective)
        path = write_confirmation(study, found)
        assert ('"objective"' in path.read_text()) == (objective != "auroc")
        assert read_confirmation(study) == found
