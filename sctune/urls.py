"""Addresses of databases and servers: checked, written out in full, and kept without their secrets.

Whatever is stored, shown or sent to a worker holds the bare URL. The password joins it in `complete`, at the moment
that a connection is opened, from an option of this process or from the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from sctune.errors import ConfigError

STORAGE_VARIABLE = "SCTUNE_STORAGE"
TRACKING_VARIABLE = "SCTUNE_TRACKING_URI"
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
"""MLflow's own, which names the store where ours does not."""

SECRET_VARIABLES = (
    STORAGE_VARIABLE,
    TRACKING_VARIABLE,
    "PGPASSWORD",
    MLFLOW_VARIABLE,
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
"""The driver needs these, the trials never."""

_POSTGRES = "postgresql+psycopg"
_OBJECT_STORES = {"s3", "gs", "gcs", "abfs", "abfss"}
"""Their keys may hold an @."""
_SECRET_KEYS = {"password", "sslpassword"}

_given: dict[str, str] = {}


def accept(url: str, option: str) -> str:
    """The bare form of a URL that the user gave; its secrets are remembered for `complete`.

    `postgresql://` and `postgres://` are written out with the driver that comes with sctune[postgres]. Raises
    ConfigError for a password with characters that would end it, without showing it.
    """
    check_codes(url, option)
    full = written_out(url)
    bare = without_secrets(full)
    if bare != full:
        _given[bare] = full
    return bare


def check_codes(url: str, option: str) -> None:
    """Raises ConfigError where a character of the password would end it."""
    scheme, sign, rest = url.partition("://")
    if not sign or scheme.startswith("sqlite"):
        return
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in rest[len(authority) :] or authority.count("@") > 1:
        raise ConfigError(
            f"{option} {scheme}://...: write special characters of the password by their codes, @ as %40, "
            "/ as %2F, ? as %3F, # as %23"
        )


def written_out(url: str) -> str:
    """The URL with the database driver named; other URLs as they are."""
    return re.sub(r"^(postgresql|postgres)://", f"{_POSTGRES}://", url)


def without_secrets(url: str, shown: bool = False) -> str:
    """The URL without password; a server's (http) without the user too, which may be a token.

    shown: for people and messages, without user and query of any URL.
    """
    # SQLAlchemy's render_as_string puts *** for the password and sorts the query; what is stored must stay as it was
    # typed, to be known again, and a URL that is refused must be shown too
    scheme, sign, rest = url.partition("://")
    if not sign or scheme.startswith("sqlite"):
        return url
    user, host, tail = _split(rest)
    if "@" in tail and scheme not in _OBJECT_STORES:
        # a password without codes: all before the last @ may be part of it
        user, (_, host, tail) = "", _split(rest.rpartition("@")[2])
    path, _, query = tail.partition("?")
    if shown:
        return f"{scheme}://{host}{path}"
    user = "" if scheme.startswith("http") else user.partition(":")[0]
    kept = "&".join(part for part in query.split("&") if part.partition("=")[0].lower() not in _SECRET_KEYS)
    return f"{scheme}://{user}{'@' if user else ''}{host}{path}{'?' if kept else ''}{kept}"


def _split(rest: str) -> tuple[str, str, str]:
    """What follows the scheme: user with password, host with port, and the rest."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, _, host = authority.rpartition("@")
    return user, host, rest[len(authority) :]


def has_secrets(url: str) -> bool:
    return without_secrets(url) != url


def complete(url: str) -> str:
    """The URL to connect with: a bare one gets back what an option of this process or the environment holds of it."""
    bare = without_secrets(written_out(url))
    if bare in _given:
        return _given[bare]
    for variable in (STORAGE_VARIABLE, TRACKING_VARIABLE, MLFLOW_VARIABLE):
        full = written_out(os.environ.get(variable, ""))
        if full and without_secrets(full) == bare:
            return full
    return written_out(url)


def chosen(option: str | None, variable: str) -> str | None:
    """What the option says, else the environment, else None."""
    return option or os.environ.get(variable) or None


def missing_driver(url: str) -> str | None:
    """What to install for this database, None where nothing is missing."""
    if url.startswith(f"{_POSTGRES}:") and find_spec("psycopg") is None:
        return 'PostgreSQL needs a driver: pip install "sctune[postgres]"'
    return None


@contextmanager
def secrets_hidden() -> Iterator[None]:
    """Without the driver's secrets in the environment, so that processes started meanwhile never have them."""
    held = {name: os.environ.pop(name) for name in SECRET_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)
