"""Searching by a figure of which lower is better: a real search, what it leaves behind, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from typer.testing import CliRunner

from sctune.cli import app
from sctune.errors import ConfigError, StudyError
from sctune.metrics.objective import AUROC, FPR95
from sctune.paths import home
from sctune.report import REPORT, VALUE, EpochReport
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import make_plan
from sctune.search.run.driver import resume, run_search
from sctune.search.run.retention import CheckpointKeeper
from sctune.search.study.study import Study
from sctune.tracking.server import TRIAL_TAG, default_tracking_uri, find_experiment, mlflow_client
from sctune.trial.checkpoint import TrialStore
from tests.builders import make_manifest, make_space
from tests.search.searching import EPOCHS, open_searcher, suggest

FEW = {"augment.threshold": {"values": [0.2, 0.4, 0.6, 0.8]}}


def sctune(*words: str, code: int = 0) -> str:
    answer = CliRunner().invoke(app, [*words])
    assert answer.exit_code == code, answer.output
    return answer.output


def options(image_folder: Path, **changes: Any) -> SearchOptions:
    fields: dict[str, Any] = {
        "name": "low",
        "profile": "smoke",
        "data": str(image_folder),
        "selection": "extra",
        "objective": "fpr95",
        "trials": 3,
        "max_concurrent": 1,
        "keep_best": 1,
        "scheduler": "none",
        "overrides": {"budget.epochs": 2, "budget.iterations": 1},
    }
    return SearchOptions(**fields | changes)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_search_by_false_alarms_keeps_the_lowest(image_folder: Path, tmp_path: Path) -> None:
    result = run_search(options(image_folder))
    assert result.best is not None and result.objective is FPR95
    full = [row.value for row in result.rows if row.state == "COMPLETE" and row.value is not None]
    assert len(full) == 3 and result.best.value == min(full)
    assert [row.value for row in result.rows] == sorted(full)
    assert result.to_dict()["objective"] == "fpr95"

    again = resume("low", more_trials=1, objective="fpr95")
    full = [row.value for row in again.rows if row.value is not None]
    assert again.best is not None and (len(full), again.best.value) == (4, min(full))
    with pytest.raises(StudyError, match="searched by fpr95, and --objective auroc would compare"):
        resume("low", objective="auroc")

    study = Study.open(home() / "studies", "low")
    assert (study.manifest.objective, study.objective) == ("fpr95", FPR95)
    stored = optuna.load_study(study_name="low", storage=study.record_url)
    assert stored.direction == StudyDirection.MINIMIZE and stored.best_value == min(full)
    number = again.best.number
    kept = [row.number for row in again.rows if TrialStore(study.manifest.storage_path, row.number).names()]
    assert kept == [number]

    # the record, the runs in MLflow and the kept checkpoint say the same
    assert "record and MLflow agree: 4 trials" in sctune("status", "low", "--check")
    uri = default_tracking_uri(home())
    client = mlflow_client(uri)
    runs = client.search_runs([find_experiment(client, uri)])
    (run,) = [run for run in runs if run.data.tags.get(TRIAL_TAG) == str(number)]
    (parent,) = [run for run in runs if run.data.tags.get("sctune.role") == "study"]
    assert run.data.metrics["FPR95"] == run.data.metrics["selection_fpr95"] == again.best.value
    assert "AUROC" not in run.data.metrics and 0 <= run.data.metrics["selection_auroc_real"] <= 1
    assert parent.data.metrics["FPR95"] == again.best.value, "the best so far, which falls"
    assert parent.data.tags["objective"] == "selection_fpr95"
    assert f"Best: trial {number}, selection\\_fpr95 {again.best.value:.4f}" in parent.data.tags["mlflow.note.content"]

    shown = sctune("status", "low")
    assert "FPR95" in shown and "AUROC" not in shown
    assert f"best: trial {number}, selection_fpr95 {again.best.value:.4f} +- " in shown
    assert f"# study low, trial {number}, selection FPR95 {again.best.value:.4f}" in sctune("best", "low")
    assert json.loads(sctune("status", "low", "--json"))["objective"] == "fpr95"
    sctune("report", "low", "--out", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "selection_fpr95" in page and "selection_auroc" not in page and "--objective fpr95" in page
    card = (study.folder / "best" / "model_card.md").read_text()
    assert "FPR95 on the selection images" in card and "which is therefore too low" in card
    head, first, *_ = (study.folder / "figures" / "leaderboard.csv").read_text().splitlines()
    assert head.startswith("rank,trial,state,epochs,selection_fpr95") and first.startswith(f"1,{number},COMPLETE")


def test_the_plan_says_so_and_takes_no_unknown_one(image_folder: Path) -> None:
    plan = make_plan(options(image_folder), has_gpu=False)
    assert (plan.manifest.objective, plan.manifest.build_objective()) == ("fpr95", FPR95)
    assert make_plan(options(image_folder, objective="auroc"), has_gpu=False).manifest.build_objective() is AUROC
    with pytest.raises(ConfigError, match="unknown objective 'fpr'"):
        make_plan(options(image_folder, objective="fpr"), has_gpu=False)


def test_a_stored_manifest_that_names_none_is_by_auroc(tmp_path: Path) -> None:
    study = Study.create(tmp_path, make_manifest(make_space(tmp_path, parameters=FEW)))
    content = json.loads((study.folder / "study.json").read_text())
    del content["objective"]
    (study.folder / "study.json").write_text(json.dumps(content))
    assert Study.open(tmp_path, "s").objective is AUROC


def low_study(tmp_path: Path) -> Study:
    manifest = make_manifest(make_space(tmp_path, parameters=FEW), objective="fpr95", trials=3)
    return Study.create(tmp_path / "root", manifest)


def report(epoch: int, value: float) -> dict[str, Any]:
    """As Ray hands it over."""
    told = EpochReport(epoch, EPOCHS, {FPR95.metric: value}, {"seed42": [0.1, value]}, "fpr95")
    return {VALUE: value, REPORT: told, "done": told.last}


def test_the_record_and_the_searcher_hold_natural_values(tmp_path: Path) -> None:
    study = low_study(tmp_path)
    searcher = open_searcher(study)
    for name, value in (("a", 0.4), ("b", 0.1)):
        suggest(searcher, name)
        for epoch in range(1, EPOCHS):
            searcher.on_trial_result(name, report(epoch, value))
        searcher.on_trial_complete(name, report(EPOCHS, value))
    assert {value for _, _, value in searcher.controller.history} == {0.4, 0.1}
    searcher.controller.record.close()
    stored = optuna.load_study(study_name="s", storage=study.record_url)
    assert (stored.direction, stored.best_value, stored.best_trial.number) == (StudyDirection.MINIMIZE, 0.1, 1)


def test_the_lowest_full_runs_keep_their_checkpoints(tmp_path: Path) -> None:
    keeper = CheckpointKeeper(str(tmp_path / "store"), 2, [], objective=FPR95)
    for number, value in enumerate((0.5, 0.1, 0.3, 0.3)):
        keeper.on_end(number, "COMPLETE", value, {})
    assert sorted(-negative for _, negative in keeper.kept) == [1, 2]
    keeper.drop_worst()
    assert [-negative for _, negative in keeper.kept] == [1]
    keeper.close()
