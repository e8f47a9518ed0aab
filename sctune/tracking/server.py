"""The MLflow store that a study is shown in: its client, its URI made safe to print, and its check before a search.

MLflow is imported inside the functions only: the import takes seconds, and its telemetry and request
limits are read from the environment, which `configure_mlflow` sets first.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from sctune.errors import TrackingError
from sctune.paths import home, takes_files
from sctune.tracking.choice import SCHEMES
from sctune.tracking.choice import SQLITE as _SQLITE
from sctune.tracking.choice import default_tracking_uri as default_tracking_uri
from sctune.urls import complete, missing_driver, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUEST_TIMEOUT_S = 10
_SERVER_CHECK_S = 12.0
_DATABASE_CHECK_S = 60.0  # the first use of a database creates its tables

STUDY_TAG = "sctune.study_id"
TRIAL_TAG = "sctune.trial"
REFERENCE_TAG = "sctune.reference"
ROLE_TAG = "sctune.role"
PARENT_TAG = "mlflow.parentRunId"
_PERMANENT = frozenset({400, 413, 501})

EXPERIMENT_TAGS = {
    # without it MLflow guesses, and shows pages about language models
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "Searches by sctune: each top-level run is a study, the runs nested in it are its trials (`reference-NAME`: a "
        "method that trains nothing), with the varied parameters first (`_name`) and the objective as `AUROC` (or "
        "`AP`, `FPR95`, where it was asked for). The description of a study's run has its best trials and links to "
        "their charts.\n\n"
        "In the search box: `tags.study = 'NAME'` (one study), `tags.state = 'COMPLETE'` (or PRUNED, FAIL), "
        "`tags.stop_reason LIKE 'stopped by asha%'`, `metrics.AUROC > 0.8`."
    ),
}
"""Of the experiment that is made for the studies; one that is there already keeps its own."""

Result = TypeVar("Result")


def safe_uri(uri: str) -> str:
    """The URI without user, password and query: what may be shown and stored."""
    return without_secrets(uri, shown=True)


def scrub(text: object, uri: str) -> str:
    """First line of a message, without the credentials of `uri` or of any other URI in it."""
    lines = str(text).replace(uri, safe_uri(uri)).strip().splitlines() or [type(text).__name__]
    return re.sub(r"[a-z][a-z0-9+.-]*://\S+", lambda found: without_secrets(found[0]), lines[0])


def local_database(uri: str) -> Path | None:
    """The file of an SQLite URI, None for every other store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def artifact_location(uri: str) -> str | None:
    """Where runs keep their files: `mlartifacts` beside an SQLite store; None: the server says.

    For another database MLFLOW_DEFAULT_ARTIFACT_ROOT (MLflow's own variable), else a folder of this machine.
    """
    database = local_database(uri)
    if database is not None:
        return (database.parent / "mlartifacts").as_uri()
    if uri.startswith("http"):
        return None
    return os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or (home() / "mlartifacts").as_uri()


def experiment_name() -> str:
    """MLflow's own variable MLFLOW_EXPERIMENT_NAME, else `sctune`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "sctune"


def configure_mlflow() -> None:
    """Bounded requests, no telemetry, no progress bars, in this process; call before importing mlflow."""
    os.environ.update(
        # the transport would also repeat a timed-out "create run", and so make two; we look first, then repeat
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
        MLFLOW_HTTP_REQUEST_TIMEOUT=str(REQUEST_TIMEOUT_S),
        MLFLOW_DISABLE_TELEMETRY="true",
        DO_NOT_TRACK="true",
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
        # in the middle of a JSON document otherwise
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="true",
        MLFLOW_UV_AUTO_DETECT="false",
    )
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


def mlflow_client(uri: str) -> MlflowClient:
    """A client on the store at `uri`, for runs and registry; does not connect over HTTP yet."""
    configure_mlflow()
    from mlflow import MlflowClient

    full = complete(uri)
    return MlflowClient(tracking_uri=full, registry_uri=full)


def find_experiment(client: MlflowClient, uri: str, study_id: str | None = None) -> str:
    """Id of the experiment that holds all studies; made, or restored from the bin, where needed.

    study_id: the study whose runs come back with it. Those of all others stay in the bin, since nobody knows here
    which of them were deleted on purpose; a study's own `sync` brings it back.
    """
    from mlflow.exceptions import MlflowException

    name = experiment_name()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location(uri), EXPERIMENT_TAGS))
        except MlflowException:
            # another process may have made it in between
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        _restore(client, str(experiment.experiment_id), study_id)
    return str(experiment.experiment_id)


def _restore(client: MlflowClient, experiment: str, study_id: str | None) -> None:
    """MLflow restores all runs of an experiment, also those that were deleted before it."""
    from mlflow.entities import ViewType

    others: list[str] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment], "", ViewType.ALL, 1000, page_token=token)
        others += [run.info.run_id for run in page if study_id is None or run.data.tags.get(STUDY_TAG) != study_id]
        token = page.token
        if not token:
            break
    client.restore_experiment(experiment)
    for run_id in others:
        client.delete_run(run_id)


def find_parent_run(uri: str, study_id: str) -> str | None:
    """Id of the study's run in the store at `uri`, None where it is not there. Raises MLflow's errors."""
    client = mlflow_client(uri)
    condition = f"tags.`{STUDY_TAG}` = '{study_id}' and tags.`{ROLE_TAG}` = 'study'"
    runs = client.search_runs(
        [find_experiment(client, uri, study_id)], condition, order_by=["attributes.start_time ASC"]
    )
    return str(runs[0].info.run_id) if runs else None


def is_permanent(problem: Exception) -> bool:
    """Whether MLflow refused this very request, so that it would refuse it again."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    if isinstance(problem, MlflowException):
        return problem.get_http_status_code() in _PERMANENT
    if isinstance(problem, HTTPError) and problem.response is not None:
        return problem.response.status_code in _PERMANENT | {404}
    return False


def check_tracking(uri: str, *, make: bool = True) -> None:
    """Raises TrackingError with one line when runs cannot be written to `uri`; bounded in time.

    A server is asked once (12 s at most); a database is opened. make: its tables (and a local store's folder and file)
    are made where they are missing; False: nothing is written.
    """
    scheme = uri.partition("://")[0].partition("+")[0]
    if "://" not in uri or scheme not in SCHEMES:
        raise TrackingError(
            f"tracking URI {safe_uri(uri)!r}: unsupported; use one of {', '.join(SCHEMES)}, "
            "for example http://127.0.0.1:5000 or sqlite:////absolute/path/mlflow.db"
        )
    missing = missing_driver(complete(uri))
    if missing is not None:
        raise TrackingError(missing)
    database = local_database(uri)
    if database is not None:
        _check_writable(database, make)
        if not make and not (database.exists() and database.stat().st_size):
            return
    limit = _SERVER_CHECK_S if scheme.startswith("http") else _DATABASE_CHECK_S
    try:
        run_bounded(lambda: _look(uri, make), limit)
    except TimeoutError:
        raise TrackingError(
            f"tracking URI {safe_uri(uri)} did not answer within {limit:.0f} s; start the server, or name "
            "another store with --tracking-uri (a folder, for a local one)"
        ) from None
    except Exception as problem:
        raise TrackingError(
            f"tracking URI {safe_uri(uri)} cannot be used: {scrub(problem, uri)}; start the server, correct the "
            "URI, or name another store with --tracking-uri (a folder, for a local one)"
        ) from None


def _look(uri: str, make: bool) -> None:
    """Ask the store once; MLflow's client makes the tables of a database, so where it must not they are looked for."""
    if make or uri.startswith("http") or _has_tables(uri):
        mlflow_client(uri).search_experiments(max_results=1)


def _has_tables(uri: str) -> bool:
    from sqlalchemy import create_engine, inspect

    engine = create_engine(complete(uri))
    try:
        return bool(inspect(engine).has_table("experiments"))
    finally:
        engine.dispose()


def run_bounded(work: Callable[[], Result], limit_s: float) -> Result:
    """The result of `work`, run in a thread that is left behind after `limit_s` seconds (TimeoutError)."""
    results: list[Result] = []
    problems: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as problem:
            problems.append(problem)

    thread = Thread(target=run, daemon=True, name="sctune-bounded")
    thread.start()
    thread.join(limit_s)
    if problems:
        raise problems[0]
    if not results:
        raise TimeoutError(f"no result within {limit_s:.0f} s")
    return results[0]


def ui_command(uri: str, port: int) -> list[str]:
    """Arguments that start the MLflow UI on a database store, on the loopback address only.

    A URI with credentials is left out, since every user of the machine can read arguments: run the command
    with `ui_environment(uri)`. Raises TrackingError for a server, which has its own UI.
    """
    if uri.startswith("http"):
        raise TrackingError(f"{safe_uri(uri)} is a server with its own UI; open that address in a browser")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    if safe_uri(complete(uri)) == uri:
        command += ["--backend-store-uri", uri]
    location = artifact_location(uri)
    return command if location is None else [*command, "--artifacts-destination", location]


def ui_environment(uri: str) -> dict[str, str]:
    """This process's environment with the store and no telemetry, for the process of `ui_command`."""
    configure_mlflow()
    # jobs are for MLflow's own evaluations; the ten processes that wait for them would take 2 GB
    return {**os.environ, "MLFLOW_BACKEND_STORE_URI": complete(uri), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _check_writable(database: Path, make: bool) -> None:
    folder = database.parent
    if make:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise TrackingError(f"cannot make the folder {folder} of the tracking store: {problem}") from None
    writable = os.access(database, os.W_OK) if database.exists() else takes_files(folder)
    if database.is_dir() or not writable:
        raise TrackingError(
            f"tracking store {database} cannot be written; give a file in a folder of yours with --tracking-uri"
        )
