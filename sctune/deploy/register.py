"""The best model of a study into MLflow: logged with its run, registered under the study's name, alias `candidate`.

Everything goes through a client with an explicit URI; MLflow's process-wide state is not touched, and the
model file names no folder of this machine.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sctune.backbones.registry import backbone_entry
from sctune.config import TrialConfig
from sctune.deploy.flavor import (
    ERROR_COLUMN,
    HEAT_COLUMN,
    HEAT_PARAM,
    IMAGE_COLUMN,
    LABEL_COLUMN,
    LOADER_MODULE,
    NOTE_COLUMN,
    SCORE_COLUMN,
)
from sctune.deploy.model import ModelParts, write_model_folder
from sctune.deploy.package import wheel_name
from sctune.errors import TrackingError
from sctune.files import file_sha256
from sctune.tracking.server import configure_mlflow, mlflow_client, run_bounded, safe_uri, scrub

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE = "candidate"
DIGEST_TAG = "sctune.weights_sha256"
_THRESHOLD_TAG = "sctune.threshold"
FORM = "form"
"""Of a model's meta: what it is made of where it is not a single trained model (`sctune/confirm/final.py`)."""
_FORM_TAG = "sctune.form"
_DATA = "detector"
_PACKAGES = (
    "mlflow", "torch", "torchvision", "numpy", "scipy", "pandas", "pillow", "pydantic", "pyyaml", "safetensors",
    "matplotlib", "tifffile", "imagecodecs",
)  # fmt: skip


class Registered(NamedTuple):
    """A registered model version; uri: `models:/<name>@candidate`. created: False where it was there already."""

    name: str
    version: int
    uri: str
    created: bool


def log_model_run(
    tracking_uri: str,
    parent_run_id: str,
    config: TrialConfig,
    weights: Path,
    parts: ModelParts,
    name: str,
    timeout_s: float = 120.0,
    again: str = "`sctune sync` tries again",
) -> Registered:
    """Log the model to the study's run, register it as `name` and point the alias `candidate` at it.

    weights: the method's `model_state` as safetensors. parts.meta: study, trial, selection metrics, licence.
    The same weights with the same threshold are registered once, however often this is called. Raises TrackingError
    with one line, which ends with `again`, when MLflow refuses, or has not finished within `timeout_s` seconds.
    """
    try:
        return run_bounded(lambda: _log(tracking_uri, parent_run_id, config, weights, parts, name), timeout_s)
    except TimeoutError:
        raise TrackingError(
            f"the best model was not registered: {safe_uri(tracking_uri)} took longer than {timeout_s:.0f} s; {again}"
        ) from None
    except Exception as problem:  # whatever MLflow raises: the study itself is complete without it
        raise TrackingError(f"the best model was not registered: {scrub(problem, tracking_uri)}; {again}") from None


def is_registered(tracking_uri: str, name: str, weights: Path) -> bool:
    """Whether these weights are a version of the registered model `name`, at any threshold; raises MLflow's errors."""
    wanted = {DIGEST_TAG: file_sha256(weights)}
    return _registered_already(mlflow_client(tracking_uri), registered_name(name), wanted) is not None


def registered_name(study: str) -> str:
    """A study's name as the registry takes it."""
    return study.replace("/", "-").replace(":", "-")


def requirements(config: TrialConfig) -> list[str]:
    """Exact versions of what loading needs, without local parts (+cpu), and the wheel inside the model."""
    backbone = backbone_entry(config.model.backbone).packages if config.entry.looks_at("model.backbone") else {}
    packages = [*_PACKAGES, *backbone.values(), *config.entry.packages]
    lines = []
    for package in packages:
        try:
            lines.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:  # an extra that is not installed here was not needed here
            continue
    # relative to the model's folder, which is where MLflow runs pip
    return [*lines, f"./data/{_DATA}/code/{wheel_name()}"]


def save_model(folder: Path, config: TrialConfig, weights: Path, parts: ModelParts, ids: tuple[str, str]) -> None:
    """Write the MLflow model into `folder`; ids: of the run and of the logged model."""
    configure_mlflow()
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        # text, although bytes are taken too: of a binary column MLflow's server decodes the base64 itself, drops the
        # url-safe letters in silence, and refuses a whole request for one bad row
        inputs=Schema([ColSpec(DataType.string, IMAGE_COLUMN)]),
        outputs=Schema(
            [
                ColSpec(DataType.double, SCORE_COLUMN),
                ColSpec(DataType.string, LABEL_COLUMN, required=False),
                ColSpec(DataType.string, ERROR_COLUMN, required=False),
                ColSpec(DataType.string, HEAT_COLUMN, required=False),
                ColSpec(DataType.string, NOTE_COLUMN, required=False),
            ]
        ),
        params=ParamSchema([ParamSpec(HEAT_PARAM, DataType.boolean, False)]),
    )
    with tempfile.TemporaryDirectory() as staging, warnings.catch_warnings():
        # the signature is written by hand; an example would only be another image to license
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        mlflow.pyfunc.save_model(
            path=str(folder),
            loader_module=LOADER_MODULE,
            data_path=str(write_model_folder(Path(staging) / _DATA, config, weights, parts)),
            # made here and not by log_model, which writes the absolute path of the store into the model
            mlflow_model=Model(run_id=ids[0], model_id=ids[1], model_uuid=ids[1]),
            pip_requirements=requirements(config),
            signature=signature,
            metadata={"study": str(parts.meta.get("study", "")), "trial": str(parts.meta.get("trial", ""))},
        )


def _log(uri: str, run_id: str, config: TrialConfig, weights: Path, parts: ModelParts, study: str) -> Registered:
    client, name = mlflow_client(uri), registered_name(study)
    same = {DIGEST_TAG: file_sha256(weights), _THRESHOLD_TAG: _threshold_tag(parts)}
    if FORM in parts.meta:
        # the same weights after a look at the test images have another card
        same[_FORM_TAG] = f"{parts.meta[FORM]}; tested {parts.meta.get('tested', 'not')}"
    found = _registered_already(client, name, same)
    created = found is None
    number = found if found is not None else _register(client, run_id, config, weights, parts, name, same)
    client.set_registered_model_alias(name, CANDIDATE, str(number))
    return Registered(name, number, f"models:/{name}@{CANDIDATE}", created)


def _register(
    client: MlflowClient,
    run_id: str,
    config: TrialConfig,
    weights: Path,
    parts: ModelParts,
    name: str,
    same: Mapping[str, str],
) -> int:
    from mlflow.entities import LoggedModelOutput

    meta = parts.meta
    tags: dict[str, str] = {
        **same,
        **{key: str(meta[key]) for key in ("study", "trial", "licence") if meta.get(key) is not None},
    }
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name, source_run_id=run_id, tags=tags, model_type="pyfunc")
    try:
        with tempfile.TemporaryDirectory() as staging:
            folder = Path(staging) / "model"
            save_model(folder, config, weights, parts, (run_id, model.model_id))
            client.log_model_artifacts(model.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    _make_registered_model(client, name)
    made = client.create_model_version(
        name,
        source=model.artifact_location,
        run_id=run_id,
        tags=tags,
        description=parts.card or str(meta.get("attribution") or ""),
        model_id=model.model_id,
    )
    return int(made.version)


def _threshold_tag(parts: ModelParts) -> str:
    """What tells a recalibrated model from the one with the same weights."""
    return "none" if parts.threshold is None else json.dumps(parts.threshold.to_dict(), sort_keys=True)


def _registered_already(client: MlflowClient, name: str, wanted: Mapping[str, str]) -> int | None:
    for found in client.search_model_versions(f"name = '{name}'"):
        # versions of earlier sctunes have no threshold, and no tag that says so
        if wanted.items() <= {_THRESHOLD_TAG: "none", **found.tags}.items():
            return int(found.version)
    return None


def _make_registered_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as problem:
        if problem.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
