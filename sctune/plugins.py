"""What other packages add to sctune: objects by name, found through Python's entry points."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import entry_points
from typing import Any

from sctune.errors import ConfigError


def plugin_names(group: str, but: Collection[str] = ()) -> list[str]:
    """Names that installed packages give in an entry point group, sorted; but: names of sctune's own, which stay."""
    return sorted({entry.name for entry in entry_points(group=group)} - set(but))


def load_plugin(group: str, name: str) -> Any:
    """The object that an installed package gives under a name of `plugin_names`.

    Raises ConfigError where its module cannot be imported or lacks it, or where two packages give the same name.
    """
    found = {entry.value: entry for entry in entry_points(group=group) if entry.name == name}
    if len(found) != 1:
        what = f"is given by several packages ({', '.join(sorted(found))})" if found else "is given by no package"
        raise ConfigError(f"{name!r} of entry point group {group} {what}; install exactly one that gives it")
    (entry,) = found.values()
    try:
        return entry.load()
    except Exception as problem:
        package = entry.dist.name if entry.dist is not None else entry.value
        raise ConfigError(
            f"{name!r} of package {package} cannot be loaded ({type(problem).__name__}: {problem}); mend or remove it"
        ) from problem
