"""What the model registry says of a study: its aliases, the versions under its name, and what it deployed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sctune.deploy.register import CANDIDATE, DIGEST_TAG, registered_name
from sctune.deploy.registry import aliased, last_move
from sctune.files import file_sha256
from sctune.search.reconcile.delivery import BEST, WEIGHTS, read_model
from sctune.search.reconcile.differences import Difference
from sctune.search.study.study import Study
from sctune.tracking.server import mlflow_client
from sctune.tracking.stored import StoredRun, find_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DEPLOYED = re.compile(r"models:/(?P<name>.+)/(?P<version>\d+)")


class Deployed(NamedTuple):
    """A version that `sctune deploy` gave an alias, as the study's run has it."""

    name: str
    version: int
    alias: str


def compare_registry(study: Study, runs: Sequence[StoredRun]) -> list[Difference]:
    """Aliases that are lost or moved, and versions under the study's name that sctune did not make.

    runs: of the study, as they are stored. Raises MLflow's errors.
    """
    client = mlflow_client(study.manifest.tracking_uri)
    found = _compare_versions(client, study)
    for run in runs:
        deployed = _deployed(run.tags) if run.role == "study" else None
        if deployed is not None:
            found += _compare_deployed(client, deployed)
    return found


def restore_champion(study: Study) -> list[str]:
    """Give the study's deployed version its alias back where nothing has it; gives lines about it.

    Raises MLflow's errors.
    """
    client = mlflow_client(study.manifest.tracking_uri)
    lines = []
    for run in find_runs(client, study.manifest.study_id):
        one = _deployed(run.data.tags)
        if one is not None and _is_lost(client, one):
            client.set_registered_model_alias(one.name, one.alias, str(one.version))
            lines.append(f"models:/{one.name}@{one.alias} is version {one.version} again")
    return lines


def _compare_versions(client: MlflowClient, study: Study) -> list[Difference]:
    name, model = registered_name(study.name), read_model(study)
    versions = list(client.search_model_versions(f"name = '{name}'"))
    found = [
        Difference(
            None, "version", f"models:/{name}/{one.version} was not made by sctune (run {one.run_id or 'none'}); it is "
            "left as it is: delete it in MLflow, or register it under another name", repair=None,
        )
        for one in versions if DIGEST_TAG not in one.tags
    ]  # fmt: skip
    if model is None:
        return found
    digest = file_sha256(study.folder / BEST / WEIGHTS)
    # with any threshold: recalibration makes versions with the same weights
    ours = [int(one.version) for one in versions if one.tags.get(DIGEST_TAG) == digest]
    now = aliased(client, name, CANDIDATE)
    if ours and now not in ours:
        what = "no version" if now is None else f"version {now}"
        text = f"models:/{name}@{CANDIDATE} names {what}, not the best model, which is version {ours[0]}"
        found.append(Difference(int(model["meta"]["trial"]), "model", text))
    return found


def _compare_deployed(client: MlflowClient, one: Deployed) -> list[Difference]:
    address = f"models:/{one.name}@{one.alias}"
    if not _exists(client, one):
        text = f"models:/{one.name}/{one.version}, which was deployed as {one.alias}, is gone; `sctune deploy` makes it"
        return [Difference(None, "alias", text, repair=None)]
    now, told = aliased(client, one.name, one.alias), last_move(client, one.name, one.alias)
    if now == told or (now == one.version and told is None):
        return []  # also where another study's model or a rollback took its place
    if _is_lost(client, one):
        return [Difference(None, "alias", f"{address} is gone; it was version {one.version}")]
    place = "is gone" if now is None else f"names version {now}"
    text = f"{address} {place}, which no deployment made; the last one was version {told}; it is left as it is"
    return [Difference(None, "alias", text, repair=None)]


def _is_lost(client: MlflowClient, one: Deployed) -> bool:
    """Whether nothing has the alias, and this version had it last."""
    if not _exists(client, one) or aliased(client, one.name, one.alias) is not None:
        return False
    return last_move(client, one.name, one.alias) in (one.version, None)


def _exists(client: MlflowClient, one: Deployed) -> bool:
    return any(int(found.version) == one.version for found in client.search_model_versions(f"name = '{one.name}'"))


def _deployed(tags: Any) -> Deployed | None:
    match = _DEPLOYED.fullmatch(tags.get("deployed", ""))
    alias = tags.get("deployed_as")
    return Deployed(match["name"], int(match["version"]), alias) if match and alias else None
