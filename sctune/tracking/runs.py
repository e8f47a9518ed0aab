"""Events to MLflow runs: a parent run per study, a child run per trial and reference, found by tags before it is made.

Applying events again changes nothing: points carry their first timestamp, parameters and tags their first
value, and a run's end is written at the time of the event.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sctune.tracking.events import (
    MAX_PARAM_LENGTH,
    NOTE,
    Child,
    as_key,
    as_texts,
    file_digest,
    identity_tags,
    objective_of,
    short_metric,
    shown_metrics,
    shown_param,
    well_formed,
)
from sctune.tracking.note import linked
from sctune.tracking.sending import Entry, Sender
from sctune.tracking.server import (
    PARENT_TAG,
    REFERENCE_TAG,
    ROLE_TAG,
    STUDY_TAG,
    TRIAL_TAG,
    find_experiment,
    mlflow_client,
)
from sctune.tracking.stored import child_of, find_runs, histories

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param

RUN_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
FAILURE = "failure.txt"
"""File of a failed trial's run: kind, message and traceback."""
_MAX_ENTRIES = 100  # of one request: MLflow's limit for parameters and for tags
_log = logging.getLogger(__name__)
Key = tuple[str, Child | None]


@dataclass
class _Batch:
    """What one run gets with its next request, and the (step, timestamp) of each point in it."""

    metrics: list[Metric] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)


class Runs:
    """Applies events in order; raises whatever is worth trying again later, logs and leaves out what is not.

    rejected: things MLflow refused for good. parent_run_id: the study's run, once known.
    """

    def __init__(self, uri: str) -> None:
        self.parent_run_id: str | None = None
        self._uri = uri
        self._client = mlflow_client(uri)
        self._sender = Sender(self._client, uri)
        self._experiment: str | None = None
        self._ids: dict[Key, str] = {}
        self._steps: dict[str, dict[int, int]] = {}
        self._homes: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._metrics: dict[str, str] = {}
        self._batches: dict[Key, _Batch] = {}
        self._listed: dict[str, dict[Child | None, list[str]]] = {}

    @property
    def rejected(self) -> int:
        return self._sender.rejected

    def apply(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Bring the runs up to date with these events; call again with the same ones after an error.

        RunGoneError: a run was deleted under way, so that its successor lacks what came before.
        """
        handlers: dict[str, Callable[[Key, Mapping[str, Any]], None]] = {
            "study": self._start,
            "trial_start": self._start,
            "report": self._report,
            "trial_end": self._end,
            "study_end": self._end,
            "artifact": self._artifact,
            "tags": self._tags,
            "drop": self._drop,
            "replace": self._replace,
        }
        try:
            self._look_up(events)
            for event in events:
                if well_formed(event):
                    handlers[event["kind"]]((event["study"], event.get("trial")), event)
                else:
                    # it must not hold up all later ones for ever
                    self._sender.reject(f"a malformed event of kind {event.get('kind')!r}", ValueError("left out"))
            self._flush_all()
        except Exception:
            self._forget()
            raise

    def _forget(self) -> None:
        # after an error it is not known what arrived: the store may be another one, a run made without an answer
        self._experiment, self._homes, self._listed = None, {}, {}
        self._ids, self._steps, self._batches = {}, {}, {}

    def _start(self, key: Key, event: Mapping[str, Any]) -> None:
        if key[1] is None:
            self._names[key[0]] = event["name"]
        run_id = self._run_id(key, event["time"])
        batch = self._batch(key)
        batch.params += self._params(run_id, event.get("params", {}))
        batch.tags.update(as_texts(event.get("tags", {})))
        if key[1] is not None:
            # the parent may be another one than when the run was made
            batch.tags[PARENT_TAG] = self._run_id((key[0], None), event["time"])
        if event.get("resumed"):
            self._sender.call("reopening a run", self._client.update_run, run_id, "RUNNING")

    def _report(self, key: Key, event: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        step, time = int(event["step"]), int(event["time"])
        batch = self._batch(key)
        stored = self._steps.setdefault(self._run_id(key, time), {})
        first = stored.get(step, batch.steps.get(step, time))
        if first != time:
            return  # an epoch repeated after a resume: its first point stays
        batch.steps[step] = time
        metrics = shown_metrics(event["metrics"], objective_of(event))
        batch.metrics += [Metric(as_key(name), float(value), time, step) for name, value in metrics.items()]

    def _tags(self, key: Key, event: Mapping[str, Any]) -> None:
        self._run_id(key, event["time"])
        self._batch(key).tags.update(as_texts(event["tags"]))

    def _end(self, key: Key, event: Mapping[str, Any]) -> None:
        run_id = self._run_id(key, event["time"])
        self._tags(key, event)
        self._summary(key, event)
        self._flush(key)
        if event.get("error") and not any(file.path == FAILURE for file in self._client.list_artifacts(run_id)):
            self._text(run_id, event["error"], FAILURE)
        if key[1] is None:
            self._end_children(key[0], event["time"])
        status = RUN_STATUS.get(event["status"], event["status"])
        self._sender.call("ending a run", self._client.set_terminated, run_id, status, int(event["time"]))

    def _summary(self, key: Key, event: Mapping[str, Any]) -> None:
        """The chart of the study's own run, and the links in its note: only here the ids of runs are known."""
        from mlflow.entities import Metric

        batch, name = self._batch(key), short_metric(objective_of(event))
        batch.metrics += [
            Metric(name, float(value), int(time), int(step)) for step, value, time in event.get("points", ())
        ]
        batch.metrics += [
            Metric(as_key(name), float(value), int(time), 0) for name, value, time in event.get("figures", ())
        ]
        if key[1] is None and NOTE in batch.tags:
            batch.tags[NOTE] = linked(batch.tags[NOTE], self._homes[key[0]], partial(self._known, key[0]))

    def _known(self, study: str, trial: int) -> str | None:
        found = self._list(study).get(trial, [])
        return self._ids.get((study, trial), found[0] if found else None)

    def _end_children(self, study: str, time: int) -> None:
        """No child says RUNNING after its study has stopped; a resumed trial says so again."""
        self._flush_all()
        for run in find_runs(self._client, study, "attributes.status = 'RUNNING'"):
            if run.data.tags.get(ROLE_TAG) in ("trial", "reference"):
                self._sender.call("ending a run", self._client.set_tag, run.info.run_id, "state", "UNFINISHED")
                self._sender.call("ending a run", self._client.set_terminated, run.info.run_id, "KILLED", int(time))

    def _drop(self, key: Key, event: Mapping[str, Any]) -> None:
        self._flush_all()
        self._delete(key, event["run"])

    def _replace(self, key: Key, event: Mapping[str, Any]) -> None:
        """The old run goes last: killed before that, there are two, and the next comparison does it again."""
        self._flush_all()
        old: str = event["run"]
        # of a try before this one
        made = [run_id for run_id in self._list(key[0]).get(key[1], []) if run_id != old]
        new = made[0] if made else self._create(key, int(event["time"]))
        if not self._sender.gone(old):
            self._sender.call(f"the files of run {old}", self._copy_files, new, old)
        self._delete(key, old)
        self._ids[key] = new
        self._listed[key[0]][key[1]] = [new]

    def _copy_files(self, target: str, source: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for file in self._client.list_artifacts(source):
                self._client.download_artifacts(source, file.path, folder)
            self._client.log_artifacts(target, folder)

    def _delete(self, key: Key, gone: str) -> None:
        if not self._sender.gone(gone):
            self._client.delete_run(gone)
        self._ids = {other: run_id for other, run_id in self._ids.items() if run_id != gone}
        for number, found in self._list(key[0]).items():
            self._listed[key[0]][number] = [run_id for run_id in found if run_id != gone]

    def _artifact(self, key: Key, event: Mapping[str, Any]) -> None:
        path, target = Path(event["path"]), event.get("artifact_path")
        run_id = self._run_id(key, event["time"])
        proof = event.get("proof")
        if proof and file_digest(Path(proof["path"])) != proof["sha256"]:
            _log.info("%s holds another trial's files by now and is not shown for %s", path, key[1])
            return
        if not path.exists():
            self._sender.reject(f"artifact {path}", FileNotFoundError("it is gone"))
            return
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._sender.call(f"artifact {path}", upload, run_id, str(path), target)

    def _text(self, run_id: str, text: str, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / Path(name).name
            local.write_text(text, encoding="utf-8")
            inside = str(Path(name).parent) if "/" in name else None
            self._sender.call(f"artifact {name}", self._client.log_artifact, run_id, str(local), inside)

    def _params(self, run_id: str, values: Mapping[str, Any]) -> list[Param]:
        from mlflow.entities import Param

        params = []
        for name, text in as_texts(values).items():
            if len(text) > MAX_PARAM_LENGTH:
                self._text(run_id, text, f"params/{name}.txt")
            params.append(Param(name, shown_param(name, text)))
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
        found = self._list(study).get(trial, [])
        if not found:
            return None
        for copy in found[1:]:  # the answer to a "create run" was lost, and a second one was made meanwhile
            self._client.delete_run(copy)
        self._listed[study][trial] = found[:1]
        if found[0] not in self._steps:
            self._read_steps(study, found[:1])
        return found[0]

    def _look_up(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Read the points of many trials at once: a history for each would take minutes after a resume."""
        usable = [event for event in events if well_formed(event)]
        self._metrics |= {event["study"]: objective_of(event).metric for event in usable}
        for study in dict.fromkeys(event["study"] for event in usable):
            trials = {event.get("trial") for event in usable if event["study"] == study}
            new = [trial for trial in trials if (study, trial) not in self._ids]
            firsts = [found[0] for trial in new if (found := self._list(study).get(trial))]
            self._read_steps(study, [run_id for run_id in firsts if run_id not in self._steps])

    def _read_steps(self, study: str, run_ids: Sequence[str]) -> None:
        for run_id, points in histories(self._client, run_ids, self._metrics[study]).items():
            self._steps[run_id] = {point.step: point.time for point in points}

    def _list(self, study: str) -> dict[Child | None, list[str]]:
        """Child (None: the study) -> ids of its runs, oldest first. Read once: only this process makes more."""
        if study not in self._listed:
            default = self._default_experiment(study)
            runs = find_runs(self._client, study)
            listed: dict[Child | None, list[str]] = {}
            for run in runs:
                number = child_of(run)
                if number is not None or run.data.tags.get(ROLE_TAG) == "study":
                    listed.setdefault(number, []).append(str(run.info.run_id))
            self._listed[study] = listed
            # that of the study, though the environment may name another one by now
            self._homes[study] = runs[0].info.experiment_id if runs else default
        return self._listed[study]

    def _create(self, key: Key, time: int) -> str:
        study, trial = key
        role = "study" if trial is None else "reference" if isinstance(trial, str) else "trial"
        tags = {STUDY_TAG: study, ROLE_TAG: role, **identity_tags()}
        if trial is None:
            name = self._names.get(study, study)
        elif isinstance(trial, str):
            name = f"reference-{trial}"
            tags |= {REFERENCE_TAG: trial, PARENT_TAG: self._run_id((study, None), time)}
        else:
            name = f"trial-{trial:04d}"
            tags |= {TRIAL_TAG: str(trial), PARENT_TAG: self._run_id((study, None), time)}
        run = self._client.create_run(self._homes[study], start_time=time, tags=tags, run_name=name)
        return str(run.info.run_id)

    def _default_experiment(self, study: str) -> str:
        """Made, or restored with this study's runs in it, before anything is looked for."""
        if self._experiment is None:
            self._experiment = find_experiment(self._client, self._uri, study)
        return self._experiment

    # sending

    def _batch(self, key: Key) -> _Batch:
        return self._batches.setdefault(key, _Batch())

    def _flush_all(self) -> None:
        for key in list(self._batches):
            self._flush(key)

    def _flush(self, key: Key) -> None:
        from mlflow.entities import RunTag

        batch = self._batches.pop(key)
        run_id = self._ids[key]
        entries: list[Entry] = [*batch.params, *(RunTag(*tag) for tag in batch.tags.items()), *batch.metrics]
        for start in range(0, len(entries), _MAX_ENTRIES):
            self._sender.send(run_id, entries[start : start + _MAX_ENTRIES])
        self._steps.setdefault(run_id, {}).update(batch.steps)
