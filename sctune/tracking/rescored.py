"""The table of a rescored trial as a run of its own below the trial's run: a curve over the variants, and the files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from sctune.tracking.run_files import LIMIT_S, warned
from sctune.tracking.server import PARENT_TAG, ROLE_TAG, STUDY_TAG, mlflow_client
from sctune.tracking.stored import find_runs, trial_of

RESCORED_TAG = "sctune.rescored"
_POINTS = 1000  # of one request: MLflow's limit


def log_rescored(
    uri: str, study_id: str, role: str, trial: int, metric: str, values: Sequence[float], files: Sequence[Path]
) -> list[str]:
    """Make the run, in place of an earlier one of this trial; gives warnings, one line each.

    metric: the objective's; values: of each variant, the trained way first. role: tag by which the run is told
    from a trial's.
    """

    def log() -> list[str]:
        return _log(uri, study_id, role, trial, metric, values, files)

    return warned(uri, "the rescored table is not in MLflow", log, LIMIT_S)


def _log(
    uri: str, study_id: str, role: str, trial: int, metric: str, values: Sequence[float], files: Sequence[Path]
) -> list[str]:
    from mlflow.entities import Metric

    client = mlflow_client(uri)
    runs = find_runs(client, study_id)
    owner = next((run for run in runs if trial_of(run) == trial and run.data.tags.get(ROLE_TAG) == "trial"), None)
    if owner is None:
        return [f"there is no run of trial {trial}"]
    for run in runs:
        if run.data.tags.get(ROLE_TAG) == role and run.data.tags.get(RESCORED_TAG) == str(trial):
            client.delete_run(run.info.run_id)
    tags = {STUDY_TAG: study_id, ROLE_TAG: role, RESCORED_TAG: str(trial), PARENT_TAG: owner.info.run_id}
    name = f"rescore-{trial:04d}"
    made = client.create_run(owner.info.experiment_id, tags=tags, run_name=name).info.run_id
    now = int(1000 * time.time())
    points = [Metric(metric, value, now, step) for step, value in enumerate(values)]
    for start in range(0, len(points), _POINTS):
        client.log_batch(made, metrics=points[start : start + _POINTS])
    for file in files:
        client.log_artifact(made, str(file), "rescore")
    client.set_terminated(made)
    return []
