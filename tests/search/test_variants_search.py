"""A real search over variants: what is trained, recorded, tracked and resumed is what each variant says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sctune.config import TrialConfig
from sctune.methods.deviation.detector import build_detector
from sctune.metrics.objective import AUROC
from sctune.paths import home
from sctune.search.plan.options import SearchOptions
from sctune.search.run.driver import resume, run_search
from sctune.search.study.leaderboard import leaderboard
from sctune.search.study.study import Study
from sctune.tracking.events import as_texts
from sctune.tracking.leaderboard import leaderboard_csv
from sctune.tracking.server import TRIAL_TAG, default_tracking_uri, find_experiment, mlflow_client
from sctune.trial.checkpoint import TrialStore

SPACE = """
variants:
  patch: {model.heads: two_head_patch}
  single: {model.heads: single_head, augment.kind: none, data.balance: 0.5}
parameters:
  augment.threshold: {values: [0.2, 0.4], when: {model.heads: two_head_patch}}
set: {budget.epochs: 1, budget.iterations: 1}
"""
POINTS = [
    {"variant": "patch", "augment.threshold": 0.2},
    {"variant": "patch", "augment.threshold": 0.4},
    {"variant": "single"},
]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_variants_from_the_space_file_to_the_registered_model(image_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "methods.yaml"
    file.write_text(SPACE)
    plans = []
    options = SearchOptions(
        space=str(file),
        name="v",
        profile="smoke",
        data=str(image_folder),
        selection="extra",
        trials=2,
        max_concurrent=1,
    )
    first = run_search(options, on_plan=lambda plan, _: plans.append(plan))
    assert (plans[0].manifest.sampler, plans[0].manifest.scheduler.name) == ("grid", "none")
    assert [row.params for row in sorted(first.rows, key=lambda row: row.number)] == POINTS[:2]
    # nothing of the file is needed any more
    file.unlink()
    result = resume("v", more_trials=1)
    document = result.to_dict()
    assert [trial["params"] for trial in document["trials"]] == POINTS
    assert {trial["state"] for trial in document["trials"]} == {"COMPLETE"}
    assert document["best_params"] == POINTS[document["best_trial"]]

    study = Study.open(home() / "studies", "v")
    base = study.manifest.trial_config()
    rows = leaderboard(study.record.load(), AUROC)
    study.record.close()
    client = mlflow_client(default_tracking_uri(home()))
    runs = client.search_runs([find_experiment(client, default_tracking_uri(home()))])
    tracked = {int(run.data.tags[TRIAL_TAG]): run.data.params for run in runs if TRIAL_TAG in run.data.tags}
    for row in rows:
        config = study.manifest.config_of(row.params)
        assert config.model.heads == {"patch": "two_head_patch", "single": "single_head"}[row.params["variant"]]
        assert config.data.balance == (0.5 if row.params["variant"] == "single" else base.data.balance)
        saved = TrialStore(study.manifest.storage_path, row.number).load_latest()
        assert saved is not None
        ((state, meta),) = saved.tasks.values()
        trained = {name.removeprefix("model/") for name in state if name.startswith("model/")}
        assert trained == set(build_detector(config).state_dict())
        here = {"runtime.device": "cpu"}  # a trial without a GPU share is told so
        assert TrialConfig.load(meta["config"]) == config.for_task(study.manifest.tasks[0]).override(here)
        shown = tracked[row.number]
        assert shown["variant"] == row.params["variant"]
        assert {name: shown[name] for name in config.flat()} == as_texts(config.flat())

    written = yaml.safe_load((study.folder / "best" / "config.yaml").read_text())
    assert result.best is not None
    assert written == study.manifest.config_of(result.best.params).document()
    assert any(note.startswith("best model: models:/v@candidate") for note in result.notes)
    header, *lines = leaderboard_csv(rows, tmp_path / "rows.csv", AUROC).read_text().splitlines()
    assert header.endswith("augment.threshold,variant")
    assert sorted(line.rpartition(",")[2] for line in lines) == ["patch", "patch", "single"]
