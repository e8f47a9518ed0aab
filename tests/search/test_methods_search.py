"""A real search over all methods (`--space method`): each is trained, recorded, compared, and tracked as what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from sctune.config import method_entries
from sctune.pages.diff import DiffOptions, diff_trials
from sctune.paths import home
from sctune.search.plan.options import SearchOptions
from sctune.search.run.driver import run_search
from sctune.search.study.study import Study
from sctune.tracking.events import as_texts
from sctune.tracking.server import TRIAL_TAG, default_tracking_uri, find_experiment, mlflow_client

SHORT = {"budget.epochs": 2, "method.total_updates": 2, "method.width": 2, "method.members": "confetti"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_method_is_searched_beside_the_others(image_folder: Path, tmp_path: Path) -> None:
    names = [entry.name for entry in method_entries()]
    options = SearchOptions(
        space="method",
        name="all",
        profile="smoke",
        data=str(image_folder),
        selection="extra",
        trials=len(names),
        scheduler="none",
        max_concurrent=1,
        keep_best=len(names),
        overrides=SHORT,
    )
    result = run_search(options)
    rows = {str(row.params["variant"]): row for row in result.rows}
    assert sorted(rows) == sorted(names) and {row.state for row in result.rows} == {"COMPLETE"}, result.notes
    assert {name: max(row.values) for name, row in rows.items()} == {
        name: 1 if name in ("gaussian", "patch_bank") else 2 for name in names
    }
    assert result.to_dict()["epochs_saved_share"] == 0

    client = mlflow_client(default_tracking_uri(home()))
    runs = client.search_runs([find_experiment(client, default_tracking_uri(home()))])
    tracked = {int(run.data.tags[TRIAL_TAG]): run.data.params for run in runs if TRIAL_TAG in run.data.tags}
    study = Study.open(home() / "studies", "all")
    for name, row in rows.items():
        config, shown = study.manifest.config_of(row.params).flat(), tracked[row.number]
        assert {field: shown[field] for field in config} == as_texts(config), name

    first, second = rows["cutpaste"].number, rows["ssm"].number
    report = diff_trials(study.folder.parent, "all", first, second, DiffOptions(rate=0.1), lambda _: None)
    assert report.changes["method.name"] == ("cutpaste", "ssm")
    study.record.close()
