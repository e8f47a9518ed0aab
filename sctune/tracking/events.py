"""The events that travel from the search to MLflow.

Events are plain dictionaries with `kind`, `study` (id), `time` (ms since 1970) and, for a child run, `trial`: the
number of a trial, or the name of a reference, whose run is one of the study's as well.

    study        name, params, tags, resumed       the parent run is found or made
    trial_start  params, tags, resumed             the child run
    report       step, metrics                     `time` is that of the first time this epoch was reported
    trial_end    status, tags, error               status COMPLETE, PRUNED or FAIL; error: a traceback
    study_end    status, tags, points, figures     status FINISHED, KILLED or FAILED; points: [[step, value, time]] of
                                                   the best value so far, for the study's own chart; figures: [[metric,
                                                   value, time]] of the references, for the same run
    artifact     path, artifact_path, proof        a file or a folder that stays until it is delivered; proof: {path,
                                                   sha256} of a file that changes when the folder gets other content
    tags         tags
    drop         run                               a run that is one too many is deleted
    replace      run                               a run that is wrong gives its place and its files to a new one

Every event of a study that is searched by another objective than the default one has its name as `objective`.
"""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from sctune.metrics.objective import DEFAULT, Objective, find_objective

Event: TypeAlias = dict[str, Any]
Child: TypeAlias = int | str
"""What a run nested in the study's shows: a trial, by its number, or a reference, by its name."""

_REQUIRED = {
    "study": ("name", "time"),
    "trial_start": ("trial", "time"),
    "report": ("trial", "step", "time", "metrics"),
    "trial_end": ("trial", "status", "time", "tags"),
    "study_end": ("status", "time", "tags"),
    "artifact": ("path", "time"),
    "tags": ("tags", "time"),
    "drop": ("run", "time"),
    "replace": ("run", "time"),
}

SHORT_PARAM = "_"
"""Starts the short names of the varied parameters: MLflow's pages list them first."""
NOTE = "mlflow.note.content"
"""MLflow's tag with a description in Markdown."""

MAX_PARAM_LENGTH = 6000
"""MLflow cuts longer values."""


def well_formed(event: Mapping[str, Any]) -> bool:
    """Whether an event has all that its kind needs, and can be written as JSON."""
    required = _REQUIRED.get(str(event.get("kind")))
    if required is None or any(name not in event for name in ("study", *required)):
        return False
    metrics = event.get("metrics", {})
    try:
        json.dumps(event, default=str)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(metrics, Mapping) and all(isinstance(value, int | float) for value in metrics.values())


def shown_metrics(metrics: Mapping[str, float], objective: Objective) -> dict[str, float]:
    """All metrics of an epoch as its run holds them."""
    first = {short_metric(objective): metrics[objective.metric]} if objective.metric in metrics else {}
    return {**first, **metrics}


def short_metric(objective: Objective) -> str:
    """The objective once more, by a name that MLflow's pages list first: their charts begin with the first metric."""
    return as_key(objective.label)


def objective_of(event: Mapping[str, Any]) -> Objective:
    """What the event's study is searched by; ConfigError for another package's that is not installed here."""
    return find_objective(str(event.get("objective", DEFAULT)))


def as_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Values of parameters or tags as text, everything but text as JSON."""
    texts = {as_key(name): _as_text(value) for name, value in values.items()}
    # databases refuse the character zero, and with it everything in the same request
    return {name: text.replace("\0", "") for name, text in texts.items()}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def shown_param(name: str, text: str) -> str:
    """A parameter's text as its run holds it: a long one lies in a file of the run."""
    return text if len(text) <= MAX_PARAM_LENGTH else f"{len(text)} characters, see artifact params/{name}.txt"


def as_key(name: str) -> str:
    """A name that MLflow takes for a parameter, tag or metric on every platform."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:250]


def file_digest(path: Path) -> str | None:
    """SHA-256 of a small file, None where there is none."""
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def identity_tags() -> dict[str, str]:
    """MLflow's own tags that say who and what made a run."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": "sctune", "mlflow.source.type": "LOCAL"}
