"""Where a model lies: in a registry by name and alias or version, or in a folder."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sctune.deploy.model import Model, load_model_folder
from sctune.errors import CheckpointError, SctuneError, TrackingError
from sctune.paths import home
from sctune.tracking.choice import resolve_tracking_uri
from sctune.tracking.server import (
    configure_mlflow,
    local_database,
    mlflow_client,
    run_bounded,
    safe_uri,
    scrub,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

INSIDE = ("", "data/detector", "model/data/detector")
"""Where the model's own folder lies below one that is given: itself, MLflow's, a run's artifacts."""

_REGISTERED = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[^/@:]+)|/(?P<version>\d+))")
_DOWNLOAD_S = 300.0


@dataclass(frozen=True)
class Address:
    """A model version in the registry at `uri`."""

    uri: str
    name: str
    version: int


def open_model(where: str, tracking_uri: str | None = None, device: str = "auto") -> Model:
    """Load a model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a folder of it.

    tracking_uri: of the registry, None for that of the environment or the local one. Raises TrackingError for a
    registry that does not answer or does not hold it, CheckpointError for a folder without a whole model.
    """
    with model_folder(where, tracking_uri) as folder:
        return load_model_folder(folder, device)


@contextmanager
def model_folder(where: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """The folder that `load_model_folder` reads, for this block; arguments and errors of `open_model`."""
    if not where.startswith("models:"):
        yield _own_folder(Path(where).expanduser().absolute())
        return
    with fetched(find_version(where, tracking_uri)) as folder:
        yield _own_folder(folder)


def find_version(where: str, tracking_uri: str | None = None) -> Address:
    """The version that an address names now; raises TrackingError where there is none."""
    match = _REGISTERED.fullmatch(where)
    if match is None:
        raise TrackingError(f"{where!r} names no model; write models:/NAME@champion, models:/NAME/VERSION or a folder")
    uri = resolve_tracking_uri(tracking_uri, home())
    database = local_database(uri)
    if database is not None and not database.is_file():
        raise TrackingError(f"no model {where}: there is no store {database}; give its --tracking-uri")
    if match["version"] is not None:
        version = int(match["version"])
        _asked(uri, lambda client: client.get_model_version(match["name"], str(version)), where)
        return Address(uri, match["name"], version)
    found = _asked(uri, lambda client: client.get_model_version_by_alias(match["name"], match["alias"]), where)
    return Address(uri, match["name"], int(found.version))


@contextmanager
def fetched(address: Address) -> Iterator[Path]:
    """The MLflow model's folder, fetched from wherever its store keeps it; gone after the block."""
    configure_mlflow()
    import mlflow.artifacts

    with tempfile.TemporaryDirectory(prefix="sctune-model-") as folder:
        where = f"models:/{address.name}/{address.version}"

        def fetch(client: MlflowClient) -> str:
            source = client.get_model_version_download_uri(address.name, str(address.version))
            return str(mlflow.artifacts.download_artifacts(source, dst_path=folder, tracking_uri=address.uri))

        yield Path(_asked(address.uri, fetch, where))


def _asked(uri: str, ask: Callable[[MlflowClient], Any], where: str) -> Any:
    from mlflow.exceptions import MlflowException

    client = mlflow_client(uri)
    try:
        return run_bounded(lambda: ask(client), _DOWNLOAD_S)
    except SctuneError:
        raise
    except MlflowException as problem:
        if problem.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise TrackingError(
                f"{safe_uri(uri)} holds no model {where}; `sctune deploy STUDY` makes one, and the registry's page "
                "lists them"
            ) from None
        raise TrackingError(f"cannot read {where} from {safe_uri(uri)}: {scrub(problem, uri)}") from None
    except Exception as problem:  # whatever MLflow raises on the way
        raise TrackingError(f"cannot read {where} from {safe_uri(uri)}: {scrub(problem, uri)}") from None


def _own_folder(folder: Path) -> Path:
    for inside in INSIDE:
        if (folder / inside / "config.json").is_file() and (folder / inside / "weights.safetensors").is_file():
            return folder / inside
    raise CheckpointError(
        f"{folder} holds no model (config.json and weights.safetensors); give models:/NAME@champion or a model's folder"
    )
