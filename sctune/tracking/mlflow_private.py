"""Every part of MLflow that its documentation does not promise; tests/test_private_parts.py names what an update took.

MLflow is pinned to one version. Its client reads the points of one run at a time; the store reads those of many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

_HISTORY_PATH = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
"""What MLflow's own page asks: one query for all runs, where the interval in its API takes four for each run."""


def is_server(client: MlflowClient) -> bool:
    """Whether the client asks a server over HTTP, and no database itself."""
    from mlflow.store.tracking.rest_store import RestStore

    return isinstance(_store(client), RestStore)


def database_histories(client: MlflowClient, run_ids: Sequence[str], metric: str, limit: int) -> list[Any]:
    """Up to `limit` points (run_id, step, value, timestamp) of many runs, where the client asks a database."""
    return list(_store(client).get_metric_history_bulk(list(run_ids), metric, limit))


def server_histories(client: MlflowClient, run_ids: Sequence[str], metric: str, limit: int) -> list[dict[str, Any]]:
    """As `database_histories`, of a server and as its JSON; raises MlflowException, 404 where it has no such path."""
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    query = [("metric_key", metric), ("max_results", str(limit)), *(("run_id", run) for run in run_ids)]
    answer = http_request(_store(client).get_host_creds(), _HISTORY_PATH, "GET", params=query)
    return list(verify_rest_response(answer, _HISTORY_PATH).json().get("metrics", []))


def _store(client: MlflowClient) -> Any:
    return client._tracking_client.store
