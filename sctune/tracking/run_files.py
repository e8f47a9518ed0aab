"""Files that are made after a study's launches, logged to its runs in MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    uri: str,
    study_id: str,
    trials: Sequence[int | None],
    files: Sequence[Path],
    folder: str,
    limit_s: float = LIMIT_S,
    what: str = "the figures are",
) -> list[str]:
    """Log files under `folder` of the runs of these trials (None: the study's own run); gives warnings, one line each.

    Makes no run and no store: what is not there is a warning, and so is a server that does not take the files
    within `limit_s` seconds. what: begins a warning.
    """
    return warned(uri, f"{what} not in MLflow", lambda: _log(uri, study_id, trials, files, folder), limit_s)


def tag_study_run(uri: str, study_id: str, tags: Mapping[str, str], limit_s: float = LIMIT_S) -> list[str]:
    """Set tags of the study's own run; gives warnings as `log_run_files` does."""

    def work() -> list[str]:
        client, (run_id, missing) = mlflow_client(uri), _run_of(uri, study_id, None)
        for name, value in tags.items():
            if run_id is not None:
                client.set_tag(run_id, name, value)
        return missing

    return warned(uri, "the tags are not in MLflow", work, limit_s)


def warned(uri: str, failed: str, work: Callable[[], list[str]], limit_s: float) -> list[str]:
    """What `work` gives as reasons, as warnings that begin with `failed`; so is every trouble with MLflow."""
    database = local_database(uri)
    if database is not None and not database.is_file():
        return [f"{failed}: its store {database} is gone"]
    try:
        return [f"{failed}: {reason}" for reason in run_bounded(work, limit_s)]
    except TimeoutError:
        return [f"{failed}: {safe_uri(uri)} took longer than {limit_s:g} s"]
    except Exception as problem:  # whatever MLflow raises: what is shown there is kept here too
        return [f"{failed} ({safe_uri(uri)}): {scrub(problem, uri)}"]


def _run_of(uri: str, study_id: str, trial: int | None) -> tuple[str | None, list[str]]:
    """Id of a run, or None and why."""
    client = mlflow_client(uri)
    which = f"tags.`{ROLE_TAG}` = 'study'" if trial is None else f"tags.`{TRIAL_TAG}` = '{trial}'"
    condition = f"tags.`{STUDY_TAG}` = '{study_id}' and {which}"
    runs = client.search_runs([find_experiment(client, uri)], condition, order_by=["attributes.start_time ASC"])
    if runs:
        return str(runs[0].info.run_id), []
    owner = "the study" if trial is None else f"trial {trial}"
    return None, [f"{safe_uri(uri)} has no run of {owner}"]


def _log(uri: str, study_id: str, trials: Sequence[int | None], files: Sequence[Path], folder: str) -> list[str]:
    client, warnings = mlflow_client(uri), []
    for trial in trials:
        run_id, missing = _run_of(uri, study_id, trial)
        warnings += missing
        for file in files:
            if run_id is not None:
                client.log_artifact(run_id, str(file), folder)
    return warnings
