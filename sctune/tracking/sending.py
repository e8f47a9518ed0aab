"""Single requests to MLflow: what it refuses for good is left out alone, everything else is raised and tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from sctune.tracking.server import is_permanent, scrub

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

_log = logging.getLogger(__name__)
Entry: TypeAlias = "Metric | Param | RunTag"


class RunGoneError(Exception):
    """A run was deleted in MLflow while it was written to; it is looked for, or made, again."""


class Sender:
    """Requests about runs of the store at `uri`. rejected: things MLflow refused for good, each logged."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self.rejected = 0
        self._client = client
        self._uri = uri

    def send(self, run_id: str, entries: list[Entry]) -> None:
        """One request; where MLflow refuses it for good, halves, until the refused entry is alone."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [entry for entry in entries if isinstance(entry, Metric)]
        params = [entry for entry in entries if isinstance(entry, Param)]
        tags = [entry for entry in entries if isinstance(entry, RunTag)]
        try:
            self._client.log_batch(run_id, metrics, params, tags)
        except Exception as problem:
            if not is_permanent(problem):
                raise
            if self.gone(run_id):
                raise RunGoneError(f"run {run_id} was deleted in MLflow; it is made again") from None
            if len(entries) == 1:
                self.reject(f"{entries[0].key!r} of run {run_id}", problem)
                return
            middle = len(entries) // 2
            self.send(run_id, entries[:middle])
            self.send(run_id, entries[middle:])

    def call(self, what: str, function: Callable[..., Any], *arguments: Any) -> None:
        """A request about a run, whose id is the first argument."""
        try:
            function(*arguments)
        except Exception as problem:
            if not is_permanent(problem):
                raise
            if self.gone(arguments[0]):
                raise RunGoneError(f"run {arguments[0]} was deleted in MLflow; it is made again") from None
            self.reject(what, problem)

    def gone(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "deleted")
        except MlflowException as problem:
            if problem.get_http_status_code() == 404:
                return True
            raise

    def reject(self, what: str, problem: Exception) -> None:
        self.rejected += 1
        _log.warning("MLflow refused %s: %s", what, scrub(problem, self._uri))
