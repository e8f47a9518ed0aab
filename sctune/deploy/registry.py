"""Aliases of a registered model: promotion, with what was there before written down, and the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sctune.errors import ConfigError, TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
PREVIOUS_TAG = "sctune.previous"
PROMOTED_TAG = "sctune.promoted"
REASON_TAG = "sctune.promoted_because"
HISTORY_TAG = "sctune.promotions"
HISTORY_KEPT = 20
"""Promotions that the registered model's own tag tells; a tag holds 5000 characters."""
REASON_LENGTH = 160


@dataclass(frozen=True)
class Move:
    """An alias that moved. before: the version that it named until then, None for its first."""

    name: str
    alias: str
    version: int
    before: int | None
    time: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {"alias": self.alias, "version": self.version, "before": self.before, "time": self.time} | {
            "reason": self.reason
        }


def check_name(name: str, option: str) -> str:
    """A registered model's name or alias as it is; ConfigError for one that no later command could be given.

    option: of the command, by which another one is given.
    """
    if not name.strip() or name.startswith("-"):
        wrong = "a leading '-' would be taken for an option by every later command" if name.strip() else "it is empty"
        raise ConfigError(f"{option} {name!r}: {wrong}; change it")
    return name


def aliased(client: MlflowClient, name: str, alias: str = CHAMPION) -> int | None:
    """The version that an alias names; None where the model or the alias does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return int(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as problem:
        if problem.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        # a server with users does not tell those who are no administrators that there is no such model
        if problem.error_code == "PERMISSION_DENIED" and not client.search_registered_models(f"name = '{name}'"):
            return None
        raise


def promote(client: MlflowClient, name: str, version: int, reason: str, alias: str = CHAMPION) -> Move:
    """Let an alias name this version, and write down which one it named before; raises MLflow's errors."""
    before = aliased(client, name, alias)
    move = Move(name, alias, version, before, _now(), reason[:REASON_LENGTH])
    tags = {PROMOTED_TAG: move.time, REASON_TAG: move.reason}
    if before != version:
        # a model that is promoted once more keeps its way back
        tags[_previous(alias)] = "" if before is None else str(before)
    for key, value in tags.items():
        client.set_model_version_tag(name, str(version), key, value)
    client.set_registered_model_alias(name, alias, str(version))
    _remember(client, move)
    return move


def rollback(client: MlflowClient, name: str, alias: str = CHAMPION) -> Move:
    """Let an alias name the version that it named before its present one.

    Raises TrackingError where there is no such alias, nothing was before it, or that version is gone.
    """
    from mlflow.exceptions import MlflowException

    current = aliased(client, name, alias)
    if current is None:
        raise TrackingError(f"model {name!r} has no alias {alias!r}; {_known(client, alias)}")
    before = client.get_model_version(name, str(current)).tags.get(_previous(alias), "")
    if not before:
        raise TrackingError(f"models:/{name}/{current} is the first {alias} of {name!r}; there is none to go back to")
    try:
        client.get_model_version(name, before)
    except MlflowException:
        raise TrackingError(f"models:/{name}/{before}, the {alias} before {current}, was deleted") from None
    client.set_registered_model_alias(name, alias, before)
    move = Move(name, alias, int(before), current, _now(), "rollback")
    _remember(client, move)
    return move


def only_model(client: MlflowClient, alias: str = CHAMPION) -> str:
    """Name of the one registered model with this alias; TrackingError where there are none or several."""
    found = models_with(client, alias)
    if len(found) == 1:
        return found[0]
    raise TrackingError(f"name the model: {', '.join(found)} have a {alias}" if found else _known(client, alias))


def models_with(client: MlflowClient, alias: str) -> list[str]:
    """Sorted names of the registered models that have this alias."""
    found, token = [], None
    while True:
        page = client.search_registered_models(max_results=100, page_token=token)
        found += [model.name for model in page if alias in (model.aliases or {})]
        token = page.token
        if not token:
            return sorted(found)


def _known(client: MlflowClient, alias: str) -> str:
    found = models_with(client, alias)
    return f"models with a {alias}: {', '.join(found)}" if found else f"no registered model has a {alias} yet"


def _previous(alias: str) -> str:
    return f"{PREVIOUS_TAG}.{alias}"


def last_move(client: MlflowClient, name: str, alias: str = CHAMPION) -> int | None:
    """The version that sctune let the alias name last, by a promotion or a rollback; None where that is not known."""
    versions = [move["version"] for move in _history(client, name) if move.get("alias") == alias and "version" in move]
    return int(versions[-1]) if versions else None


def _history(client: MlflowClient, name: str) -> list[Mapping[str, Any]]:
    stored = client.get_registered_model(name).tags.get(HISTORY_TAG, "[]")
    try:
        return [move for move in json.loads(stored) if isinstance(move, dict)]
    except (ValueError, TypeError):
        return []  # somebody else's text


def _remember(client: MlflowClient, move: Move) -> None:
    text = json.dumps([*_history(client, move.name), move.to_dict()][-HISTORY_KEPT:])
    client.set_registered_model_tag(move.name, HISTORY_TAG, text)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
