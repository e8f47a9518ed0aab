"""Methods by their published names (`--method`): each a set of configuration values over a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sctune.config import is_field, method_entries
from sctune.errors import ConfigError, nearest


def method_names() -> tuple[str, ...]:
    """In the order of the registry: the paper's own method first."""
    return tuple(_published())


def method_values(name: str, profile: str | None) -> dict[str, Any]:
    """Dotted configuration values of a method, with what it has for the profile besides: `paper`, its published code's.

    Another profile may have values of its own too, such as a budget that a CPU can train. None: only what makes it.

    Raises ConfigError for an unknown method.
    """
    methods = _published()
    if name not in methods:
        raise ConfigError(f"unknown method {name!r}; {nearest(name, methods)}")
    parts = [methods[name]["config"], {} if profile is None else methods[name].get(profile, {})]
    values = {
        f"{section}.{field}": value
        for part in parts
        for section, fields in part.items()
        for field, value in fields.items()
    }
    assert all(map(is_field, values)), values
    return values


def _published() -> dict[str, Mapping[str, Any]]:
    return {name: tree for entry in method_entries() for name, tree in entry.published.items()}
