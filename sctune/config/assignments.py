"""Values of configurations as they are written: `key=value` words and YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sctune.config.strict_yaml import parse_yaml
from sctune.errors import ConfigError

_TEXT_MARKS = ("'", '"', "!", "|", ">")
"""How a YAML value begins that is text whatever it looks like."""


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`key=value` strings of the command line to dotted values; the value is read as YAML.

    2e-4 is a number here, which YAML 1.1 reads as text; what is quoted stays text: data.group='"12"'.
    """
    values = {}
    for text in assignments:
        name, sign, raw = text.partition("=")
        if not sign:
            raise ConfigError(f"--set {text!r}: write key=value, for example model.patch_count=4")
        try:
            value = parse_yaml(raw)
        except yaml.YAMLError:
            raise ConfigError(f"--set {text!r}: the value is not valid YAML") from None
        plain = isinstance(value, str) and not raw.lstrip().startswith(_TEXT_MARKS)
        values[name.strip()] = float(value) if plain and _is_number(value) else value
    return values


def read_yaml(path: Path, error: type[ConfigError] = ConfigError) -> dict[str, Any]:
    """A YAML mapping, safely loaded; a clear error for a missing, unreadable or malformed file."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"cannot read {path}: {problem}") from None
    except yaml.YAMLError as problem:
        raise error(f"{path} is not valid YAML: {' '.join(str(problem).split())}") from None
    if not isinstance(content, dict):
        raise error(f"{path} must hold keys and values, got {type(content).__name__}")
    return content


class _Written(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # a list that two fields share is written twice: people read it, and edit one of them


def yaml_text(content: Mapping[str, Any], width: int | None = None) -> str:
    """A mapping as YAML for people: in its order, without anchors.

    width: characters of a line; with it, lists and mappings of plain values stand on one line each.
    """
    flow = False if width is None else None  # None is PyYAML's word for leaves on one line
    return yaml.dump(
        dict(content), Dumper=_Written, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=width
    )


def _is_number(text: str) -> bool:
    # YAML 1.1 reads 2e-4 as text; people mean the number
    try:
        float(text)
    except ValueError:
        return False
    return True
