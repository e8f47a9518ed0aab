"""Events to MLflow runs: one parent run per study, one child run per trial, each found by its tags before it is made.

Applying events again changes nothing: points carry their first timestamp, parameters and tags their first
value, and a run's end is written at the time of the event.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sctune.report import OBJECTIVE
from sctune.tracking.events import as_key, as_texts, identity_tags, well_formed
from sctune.tracking.server import (
    PARENT_TAG,
    ROLE_TAG,
    STUDY_TAG,
    TRIAL_TAG,
    find_experiment,
    is_permanent,
    mlflow_client,
    scrub,
)

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, Run, RunTag

RUN_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
MAX_PARAM_LENGTH = 6000  # MLflow cuts longer values
_MAX_ENTRIES = 100  # of one request: MLflow's limit for parameters and for tags
_log = logging.getLogger(__name__)
Key = tuple[str, int | None]
Entry: TypeAlias = "Metric | Param | RunTag"


@dataclass
class _Batch:
    """What one run is owed, and the (step, timestamp) of each point in it."""

    metrics: list[Metric] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)


class Runs:
    """Applies events in order; raises whatever is worth trying again later, logs and leaves out what is not.

    rejected: things MLflow refused for good. parent_run_id: the study's run, once known.
    """

    def __init__(self, uri: str) -> None:
        self.rejected = 0
        self.parent_run_id: str | None = None
        self._uri = uri
        self._client = mlflow_client(uri)
        self._experiment: str | None = None
        self._ids: dict[Key, str] = {}
        self._steps: dict[str, dict[int, int]] = {}
        self._names: dict[str, str] = {}
        self._batches: dict[Key, _Batch] = {}

    def apply(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Bring the runs up to date with these events; call again with the same ones after an error."""
        handlers: dict[str, Callable[[Key, Mapping[str, Any]], None]] = {
            "study": self._start,
            "trial_start": self._start,
            "report": self._report,
            "trial_end": self._end,
            "study_end": self._end,
            "artifact": self._artifact,
            "tags": self._tags,
        }
        try:
            for event in events:
                if well_formed(event):
                    handlers[event["kind"]]((event["study"], event.get("trial")), event)
                else:
                    # it must not hold up all later ones for ever
                    self._reject(f"a malformed event of kind {event.get('kind')!r}", ValueError("left out"))
            for key in list(self._batches):
                self._flush(key)
        except Exception:
            self._forget()
            raise

    def _forget(self) -> None:
        # after an error it is not known what arrived: the store may be another one, a run made without an answer
        self._experiment = None
        self._ids, self._steps, self._batches = {}, {}, {}

    def _start(self, key: Key, event: Mapping[str, Any]) -> None:
        if key[1] is None:
            self._names[key[0]] = event["name"]
        run_id = self._run_id(key, event["time"])
        batch = self._batch(key)
        batch.params += self._params(run_id, event.get("params", {}))
        batch.tags.update(as_texts(event.get("tags", {})))
        if event.get("resumed"):
            self._call("reopening a run", self._client.update_run, run_id, "RUNNING")

    def _report(self, key: Key, event: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        step, time = int(event["step"]), int(event["time"])
        batch = self._batch(key)
        stored = self._steps.setdefault(self._run_id(key, time), {})
        first = stored.get(step, batch.steps.get(step, time))
        if first != time:
            return  # an epoch repeated after a resume: its first point stays
        batch.steps[step] = time
        batch.metrics += [Metric(as_key(name), float(value), time, step) for name, value in event["metrics"].items()]

    def _tags(self, key: Key, event: Mapping[str, Any]) -> None:
        self._run_id(key, event["time"])
        self._batch(key).tags.update(as_texts(event["tags"]))

    def _end(self, key: Key, event: Mapping[str, Any]) -> None:
        run_id = self._run_id(key, event["time"])
        self._tags(key, event)
        self._flush(key)
        if event.get("error"):
            self._text(run_id, event["error"], "failure.txt")
        if key[1] is None:
            self._end_children(key[0], event["time"])
        status = RUN_STATUS.get(event["status"], event["status"])
        self._call("ending a run", self._client.set_terminated, run_id, status, int(event["time"]))

    def _end_children(self, study: str, time: int) -> None:
        """No child says RUNNING after its study has stopped; a resumed trial says so again."""
        for other in list(self._batches):
            self._flush(other)
        for run in self._search(f"tags.`{STUDY_TAG}` = '{study}' and attributes.status = 'RUNNING'"):
            if run.data.tags.get(ROLE_TAG) == "trial":
                self._call("ending a run", self._client.set_tag, run.info.run_id, "state", "UNFINISHED")
                self._call("ending a run", self._client.set_terminated, run.info.run_id, "KILLED", int(time))

    def _artifact(self, key: Key, event: Mapping[str, Any]) -> None:
        path, target = Path(event["path"]), event.get("artifact_path")
        run_id = self._run_id(key, event["time"])
        if not path.exists():
            self._reject(f"artifact {path}", FileNotFoundError("it is gone"))
            return
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._call(f"artifact {path}", upload, run_id, str(path), target)

    def _text(self, run_id: str, text: str, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / Path(name).name
            local.write_text(text, encoding="utf-8")
            inside = str(Path(name).parent) if "/" in name else None
            self._call(f"artifact {name}", self._client.log_artifact, run_id, str(local), inside)

    def _params(self, run_id: str, values: Mapping[str, Any]) -> list[Param]:
        from mlflow.entities import Param

        params = []
        for name, text in as_texts(values).items():
            if len(text) > MAX_PARAM_LENGTH:
                self._text(run_id, text, f"params/{name}.txt")
                text = f"{len(text)} characters, see artifact params/{name}.txt"
            params.append(Param(name, text))
        return params

    # runs

    def _run_id(self, key: Key, time: int) -> str:
        if key not in self._ids:
            found = self._find(key)
            self._ids[key] = self._create(key, int(time)) if found is None else found
            if key[1] is None:
                self.parent_run_id = self._ids[key]
        return self._ids[key]

    def _find(self, key: Key) -> str | None:
        study, trial = key
        role = f"tags.`{ROLE_TAG}` = 'study'" if trial is None else f"tags.`{TRIAL_TAG}` = '{trial}'"
        runs = self._search(f"tags.`{STUDY_TAG}` = '{study}' and {role}")
        if not runs:
            return None
        first, *copies = sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
        for copy in copies:  # the answer to a "create run" was lost, and a second one was made meanwhile
            self._client.delete_run(copy.info.run_id)
        history = self._client.get_metric_history(first.info.run_id, OBJECTIVE)
        self._steps[first.info.run_id] = {point.step: point.timestamp for point in history}
        return str(first.info.run_id)

    def _create(self, key: Key, time: int) -> str:
        study, trial = key
        tags = {STUDY_TAG: study, ROLE_TAG: "study" if trial is None else "trial", **identity_tags()}
        if trial is None:
            name = self._names.get(study, study)
        else:
            name = f"trial-{trial:04d}"
            tags |= {TRIAL_TAG: str(trial), PARENT_TAG: self._run_id((study, None), time)}
        run = self._client.create_run(self._experiment_id(), start_time=time, tags=tags, run_name=name)
        return str(run.info.run_id)

    def _search(self, condition: str) -> list[Run]:
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment_id()], condition, max_results=1000, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs

    def _experiment_id(self) -> str:
        if self._experiment is None:
            self._experiment = find_experiment(self._client, self._uri)
        return self._experiment

    # sending

    def _batch(self, key: Key) -> _Batch:
        return self._batches.setdefault(key, _Batch())

    def _flush(self, key: Key) -> None:
        from mlflow.entities import RunTag

        batch = self._batches.pop(key)
        run_id = self._ids[key]
        entries: list[Entry] = [*batch.params, *(RunTag(*tag) for tag in batch.tags.items()), *batch.metrics]
        for start in range(0, len(entries), _MAX_ENTRIES):
            self._send(run_id, entries[start : start + _MAX_ENTRIES])
        self._steps.setdefault(run_id, {}).update(batch.steps)

    def _send(self, run_id: str, entries: list[Entry]) -> None:
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
            if len(entries) == 1:
                self._reject(f"{entries[0].key!r} of run {run_id}", problem)
                return
            middle = len(entries) // 2
            self._send(run_id, entries[:middle])
            self._send(run_id, entries[middle:])

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as problem:
            if not is_permanent(problem):
                raise
            self._reject(what, problem)

    def _reject(self, what: str, problem: Exception) -> None:
        self.rejected += 1
        _log.warning("MLflow refused %s: %s", what, scrub(problem, self._uri))
