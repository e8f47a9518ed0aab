"""Which MLflow store is meant: the option, the environment or the local one; read as a full URI, or refused.

What MLflow itself would take for a folder without a word (`host:port`, a misspelt scheme) is refused here, with what
to write instead.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from sctune.errors import TrackingError
from sctune.urls import MLFLOW_VARIABLE, TRACKING_VARIABLE, accept, without_secrets

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
SQLITE = "sqlite:///"
OPTION = "--tracking-uri"
DEFAULT = "the default"

_PATH = re.compile(r"[/.~]")
_HOST_PORT = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):\d+(/.*)?")
_FORMS = (
    "write http://host:port or https://... for a server, sqlite:////absolute/mlflow.db, postgresql://user@host/db or "
    "mysql://user@host/db for a database, or a folder's path, which gets an SQLite file mlflow.db"
)


class Store(NamedTuple):
    """A store as a full URI without secrets. origin: the option or the variable that named it, or `the default`."""

    uri: str
    origin: str


def default_tracking_uri(folder: Path) -> str:
    """The local store: an SQLite file in `folder`, as an absolute URI."""
    return f"{SQLITE}{folder.expanduser().absolute() / 'mlflow.db'}"


def choose_store(given: str | None, folder: Path) -> Store:
    """The store that is meant: by the option, else SCTUNE_TRACKING_URI, else MLFLOW_TRACKING_URI, else in `folder`.

    A path or a relative SQLite URI becomes absolute, since a worker's or a later launch's current folder is another
    one; a password stays with this process, and `complete` adds it when a connection is opened. Raises TrackingError
    for what names no store, ConfigError for a password that must be written by codes.
    """
    named = [(given, OPTION), *((os.environ.get(name), name) for name in (TRACKING_VARIABLE, MLFLOW_VARIABLE))]
    for text, origin in named:
        if text:
            return Store(_full(text.strip(), origin), origin)
    return Store(default_tracking_uri(folder), DEFAULT)


def resolve_tracking_uri(given: str | None, folder: Path) -> str:
    """The URI of `choose_store`."""
    return choose_store(given, folder).uri


def _full(text: str, origin: str) -> str:
    if _PATH.match(text) or "/" in text.partition(":")[0]:
        return _in_folder(text, origin)
    scheme, sign, rest = text.partition(":")
    if not sign:
        if scheme == "databricks":
            raise _refused(text, origin, "Databricks is not supported")
        return _in_folder(text, origin)
    if scheme.startswith("sqlite"):
        path = text.removeprefix(SQLITE)
        if path in (text, "", ":memory:"):
            raise _refused(text, origin, "an SQLite store is a file")
        return f"{SQLITE}{Path(path).expanduser().absolute()}"
    if scheme == "file":
        raise _refused(text, origin, "MLflow keeps no runs in plain folders any more")
    if not rest.startswith("//"):
        hint = f"; for this server http://{_shown(text)}" if _HOST_PORT.fullmatch(_shown(text)) else ""
        raise _refused(text, origin, f"it has no scheme{hint}")
    if scheme.partition("+")[0] not in {*SCHEMES, "postgres"}:
        raise _refused(text, origin, f"unsupported; use one of {', '.join(SCHEMES)}")
    bare = accept(text, origin)
    if scheme.startswith("http") and not urlsplit(bare).hostname:
        raise _refused(text, origin, "it names no host")
    return bare


def _in_folder(text: str, origin: str) -> str:
    path = Path(text).expanduser().absolute()
    if path.suffix == ".db":
        return f"{SQLITE}{path}"
    if next(path.glob("*/meta.yaml"), None) is not None:
        raise TrackingError(
            f"{origin} {text!r}: the folder holds runs of MLflow's old file store, which MLflow reads no more; bring "
            "them into a database with `mlflow migrate-filestore`, or give another folder"
        )
    return f"{SQLITE}{path / 'mlflow.db'}"


def _shown(text: str) -> str:
    """Without what may be a password."""
    return without_secrets(text) if "://" in text else text.rpartition("@")[2]


def _refused(text: str, origin: str, reason: str) -> TrackingError:
    return TrackingError(f"{origin} {_shown(text)!r}: {reason}; {_FORMS}")
