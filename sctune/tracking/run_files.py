"""Files that are made after a study's launches, logged to its runs in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sctune.tracking.server import (
    ROLE_TAG,
    STUDY_TAG,
    TRIAL_TAG,
    find_experiment,
    local_database,
    mlflow_client,
    run_bounded,
    safe_uri,
    scrub,
)

LIMIT_S = 120.0


def log_run_files(
    uri: str, study_id: str, trials: Sequence[int | None], files: Sequence[Path], folder: str, limit_s: float = LIMIT_S
) -> list[str]:
    """Log files under `folder` of the runs of these trials (None: the study's own run); gives warnings, one line each.

    Makes no run and no store: what is not there is a warning, and so is a server that does not take the files
    within `limit_s` seconds.
    """
    database = local_database(uri)
    if database is not None and not database.is_file():
        return [f"the figures are not in MLflow: its store {database} is gone"]
    try:
        return run_bounded(lambda: _log(uri, study_id, trials, files, folder), limit_s)
    except TimeoutError:
        return [f"the figures are not in MLflow: {safe_uri(uri)} took longer than {limit_s:g} s"]
    except Exception as problem:  # whatever MLflow raises: the files are on disk
        return [f"the figures are not in MLflow ({safe_uri(uri)}): {scrub(problem, uri)}"]


def _log(uri: str, study_id: str, trials: Sequence[int | None], files: Sequence[Path], folder: str) -> list[str]:
    client = mlflow_client(uri)
    experiment = find_experiment(client, uri)
    warnings = []
    for trial in trials:
        which = f"tags.`{ROLE_TAG}` = 'study'" if trial is None else f"tags.`{TRIAL_TAG}` = '{trial}'"
        condition = f"tags.`{STUDY_TAG}` = '{study_id}' and {which}"
        runs = client.search_runs([experiment], condition, order_by=["attributes.start_time ASC"])
        if not runs:
            owner = "the study" if trial is None else f"trial {trial}"
            warnings.append(f"the figures are not in MLflow: {safe_uri(uri)} has no run of {owner}")
            continue
        for file in files:
            client.log_artifact(runs[0].info.run_id, str(file), folder)
    return warnings
