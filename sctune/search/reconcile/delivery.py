"""The files and the model that a finished study shows in MLflow: what is still missing there, and how it gets there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sctune.deploy.model import ModelParts, read_parts
from sctune.deploy.register import Registered, is_registered, log_model_run
from sctune.errors import StudyError
from sctune.search.reconcile.differences import Difference
from sctune.search.study.study import Study, write_json
from sctune.tracking.server import mlflow_client
from sctune.tracking.stored import StoredRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

FIGURES = "figures"
BEST = "best"
WEIGHTS = "model.safetensors"
FORMAT_VERSION = 1
_MODEL = "model.json"


class Delivery(NamedTuple):
    """A folder of the study that a run shows under `inside`; trial: None for the study's run."""

    trial: int | None
    folder: Path
    inside: str


def deliveries(study: Study) -> list[Delivery]:
    """What the last launch that ended made: pictures of the study, and files of its best trial."""
    figures, best = study.folder / FIGURES, study.folder / BEST
    found = [Delivery(None, figures, "study")] if figures.is_dir() else []
    model = read_model(study)
    return found if model is None else [*found, Delivery(int(model["meta"]["trial"]), best, BEST)]


def compare_files(study: Study, runs: Sequence[StoredRun]) -> list[Difference]:
    """Files and model that MLflow lacks; raises MLflow's errors. runs: of the study, as they are stored."""
    client = mlflow_client(study.manifest.tracking_uri)
    run_ids = {run.trial: run.run_id for run in runs if run.trial is not None or run.role == "study"}
    found = []
    for one in deliveries(study):
        if one.trial not in run_ids:
            continue  # told already
        here = {path.relative_to(one.folder).as_posix() for path in one.folder.rglob("*") if path.is_file()}
        there = {path.removeprefix(f"{one.inside}/") for path in _listed(client, run_ids[one.trial], one.inside)}
        if missing := sorted(here - there):
            text = f"MLflow lacks {len(missing)} of {len(here)} files in {one.folder.name} ({missing[0]} ...)"
            found.append(Difference(one.trial, "files", text))
    model = read_model(study)
    if model is not None and not is_registered(study.manifest.tracking_uri, study.name, study.folder / BEST / WEIGHTS):
        found.append(
            Difference(int(model["meta"]["trial"]), "model", "it is the best, and its model is not registered")
        )
    return found


def write_model(study: Study, meta: Mapping[str, Any]) -> Path:
    """Keep what registering the best model takes beside its weights, for a server that is away now; gives the file."""
    path = study.folder / BEST / _MODEL
    write_json(path, {"format_version": FORMAT_VERSION, "meta": dict(meta)})
    return path


def read_model(study: Study) -> dict[str, Any] | None:
    """What `write_model` kept, None where there is none; StudyError for a damaged file or one of a newer sctune."""
    path = study.folder / BEST / _MODEL
    try:
        model: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if model["format_version"] != FORMAT_VERSION:
            raise StudyError(
                f"{path} has format_version {model['format_version']!r}, this sctune reads {FORMAT_VERSION}"
            )
        return model if (path.parent / WEIGHTS).is_file() and model["meta"]["trial"] >= 0 else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise StudyError(f"{path} cannot be read: {problem}; `sctune resume {study.name}` makes it anew") from None


def register_best(study: Study, parent_run_id: str, timeout_s: float) -> Registered | None:
    """Register the best model from the study's folder, None where there is none; raises TrackingError."""
    model = read_model(study)
    if model is None:
        return None
    manifest, meta = study.manifest, model["meta"]
    config = manifest.config_of(meta["params"])
    folder = study.folder / BEST
    if (folder / "meta.json").is_file():
        parts = read_parts(folder)
    else:  # finished by an earlier version
        parts = ModelParts({key: value for key, value in meta.items() if key != "params"})
    return log_model_run(manifest.tracking_uri, parent_run_id, config, folder / WEIGHTS, parts, study.name, timeout_s)


def _listed(client: MlflowClient, run_id: str, folder: str) -> Iterator[str]:
    for info in client.list_artifacts(run_id, folder):
        if info.is_dir:
            yield from _listed(client, run_id, info.path)
        else:
            yield info.path
