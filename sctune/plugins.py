"""What other packages add to sctune: objects by name, found through Python's entry points."""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from sctune.errors import ConfigError

Kind = TypeVar("Kind")


def plugin_names(group: str, but: Collection[str] = ()) -> list[str]:
    """Names that installed packages give in an entry point group, sorted; but: names of sctune's own, which stay."""
    return sorted({entry.name for entry in _points(group, tuple(sys.path))} - set(but))


def load_plugin(group: str, name: str) -> Any:
    """The object that an installed package gives under a name of `plugin_names`.

    Raises ConfigError where its module cannot be imported or lacks it, or where two packages give the same name.
    """
    return _load(_only(group, name))


def load_entry(group: str, name: str, kind: type[Kind]) -> Kind:
    """As `load_plugin`, for an entry of a registry: an object of this class whose `name` is the entry point's.

    Raises ConfigError for another one too.
    """
    entry = load_plugin(group, name)
    if not isinstance(entry, kind) or getattr(entry, "name", None) != name:
        raise ConfigError(
            f"entry point {name!r} of group {group} gives no {kind.__name__} of that name; mend its package"
        )
    return entry


@lru_cache(maxsize=32)
def _points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Looked up once for each `sys.path`: it takes a tenth of a second."""
    return tuple(entry_points(group=group))


def _only(group: str, name: str) -> EntryPoint:
    found = {entry.value: entry for entry in _points(group, tuple(sys.path)) if entry.name == name}
    if len(found) != 1:
        what = f"is given by several packages ({', '.join(sorted(found))})" if found else "is given by no package"
        raise ConfigError(f"{name!r} of entry point group {group} {what}; install exactly one that gives it")
    (entry,) = found.values()
    return entry


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as problem:  # whatever another package raises when it is imported
        text = " ".join(str(problem).split())[:200]
        raise ConfigError(
            f"{entry.name!r} of package {_package(entry)} cannot be loaded ({type(problem).__name__}: {text}); mend or "
            "remove it"
        ) from problem


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value
