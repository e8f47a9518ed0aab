"""What MLflow holds of a study, read in bulk: its runs, and the points of their metrics. Nothing here writes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sctune.tracking.events import Child
from sctune.tracking.mlflow_private import database_histories, is_server, server_histories
from sctune.tracking.server import PARENT_TAG, REFERENCE_TAG, ROLE_TAG, STUDY_TAG, TRIAL_TAG, mlflow_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_RUNS_PER_REQUEST = 25
"""A busy server takes 50 ms for a run with its parameters, and a request that takes 10 s has failed."""
_POINTS_PER_REQUEST = 25_000
"""MLflow's limit of one request for histories; it leaves out what is beyond."""
_TRIES = 2
"""Of one request: a read of a large study is many, and one that took too long must not undo all before it."""


Result = TypeVar("Result")


class Point(NamedTuple):
    """One value of a metric; time: ms since 1970."""

    step: int
    value: float
    time: int


@dataclass(frozen=True)
class StoredRun:
    """A run with its points by metric. trial: number of a trial, name of a reference, None for the study's own run.

    parent: the run that it is nested in.
    """

    run_id: str
    trial: Child | None
    role: str
    parent: str | None
    start: int
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: Mapping[str, Sequence[Point]]


def read_study(uri: str, study_id: str, metrics: Collection[str]) -> list[StoredRun]:
    """All runs of a study with every point of these metrics, oldest run first; raises MLflow's errors."""
    client = mlflow_client(uri)
    runs = find_runs(client, study_id)
    points: dict[str, dict[str, list[Point]]] = {run.info.run_id: {} for run in runs}
    for metric in sorted(metrics):
        holders = [run.info.run_id for run in runs if metric in run.data.metrics]
        for run_id, history in histories(client, holders, metric).items():
            points[run_id][metric] = history
    return [_stored(run, points[run.info.run_id]) for run in runs]


def find_runs(client: MlflowClient, study_id: str, condition: str = "") -> list[Run]:
    """Runs of a study, whatever experiment they are in, oldest first; condition: more of MLflow's search language."""
    experiments = [found.experiment_id for found in _pages(client.search_experiments)]
    text = f"tags.`{STUDY_TAG}` = '{study_id}'" + (f" and {condition}" if condition else "")
    runs = list(_pages(client.search_runs, experiments, text))
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def trial_of(run: Run) -> int | None:
    """Number of the trial that a run shows, None for a study's run and for one whose tag is no number."""
    text = run.data.tags.get(TRIAL_TAG, "")
    return int(text) if text.isdecimal() else None


def child_of(run: Run) -> Child | None:
    """Which trial or reference a run shows, None where it is neither's."""
    number = trial_of(run)
    return run.data.tags.get(REFERENCE_TAG) if number is None else number


def histories(client: MlflowClient, run_ids: Sequence[str], metric: str) -> dict[str, list[Point]]:
    """Run id -> all points of a metric; many runs per request."""
    found: dict[str, list[Point]] = {run_id: [] for run_id in run_ids}
    for start in range(0, len(run_ids), _RUNS_PER_REQUEST):
        asked = run_ids[start : start + _RUNS_PER_REQUEST]
        rows = list(_bulk(client, asked, metric))
        if len(rows) >= _POINTS_PER_REQUEST:
            rows = [(run_id, point) for run_id in asked for point in _history(client, run_id, metric)]
        for run_id, point in rows:
            found[run_id].append(point)
    return found


def _bulk(client: MlflowClient, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, Point]]:
    from mlflow.exceptions import MlflowException

    if not is_server(client):
        for row in database_histories(client, run_ids, metric, _POINTS_PER_REQUEST):
            yield row.run_id, Point(row.step, row.value, row.timestamp)
        return
    try:
        rows = _again(lambda: server_histories(client, run_ids, metric, _POINTS_PER_REQUEST))
    except MlflowException as problem:
        if problem.get_http_status_code() != 404:
            raise
        # a server without that path: one request per run
        for run_id in run_ids:
            for point in _history(client, run_id, metric):
                yield run_id, point
        return
    for one in rows:
        yield one["run_id"], Point(int(one["step"]), float(one["value"]), int(one["timestamp"]))


def _history(client: MlflowClient, run_id: str, metric: str) -> list[Point]:
    return [Point(point.step, point.value, point.timestamp) for point in client.get_metric_history(run_id, metric)]


def _pages(search: Any, *arguments: Any) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = _again(partial(search, *arguments, max_results=_RUNS_PER_REQUEST, page_token=token))
        yield from page
        token = page.token
        if not token:
            return


def _again(read: Callable[[], Result]) -> Result:
    from mlflow.exceptions import MlflowException

    for _ in range(_TRIES - 1):
        try:
            return read()
        except MlflowException as problem:
            # MLflow's word for whatever happened on the way; a refusal has another code
            if problem.get_http_status_code() < 500:
                raise
    return read()


def _stored(run: Run, points: Mapping[str, Sequence[Point]]) -> StoredRun:
    tags = run.data.tags
    return StoredRun(
        run_id=run.info.run_id,
        trial=child_of(run),
        role=tags.get(ROLE_TAG, ""),
        parent=tags.get(PARENT_TAG),
        start=run.info.start_time,
        status=run.info.status,
        params=run.data.params,
        tags=tags,
        points=points,
    )
