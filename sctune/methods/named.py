"""The paper's methods by name: saliencycut, dra, devnet; each a set of configuration values over a profile."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from sctune.config import FIELD_NAMES
from sctune.errors import ConfigError, nearest


def method_names() -> tuple[str, ...]:
    """In the order of the file: the paper's own method first."""
    return tuple(_methods())


def method_values(name: str, profile: str) -> dict[str, Any]:
    """Dotted configuration values of a method; profile `paper` adds what its published code has besides.

    Raises ConfigError for an unknown method.
    """
    methods = _methods()
    if name not in methods:
        raise ConfigError(f"unknown method {name!r}; {nearest(name, methods)}")
    parts = [methods[name]["config"], methods[name].get("paper", {}) if profile == "paper" else {}]
    values = {
        f"{section}.{field}": value
        for part in parts
        for section, fields in part.items()
        for field, value in fields.items()
    }
    assert values.keys() <= set(FIELD_NAMES), values
    return values


def _methods() -> dict[str, Any]:
    return dict(yaml.safe_load(files("sctune.methods").joinpath("named.yaml").read_text(encoding="utf-8")))
