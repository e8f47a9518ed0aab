"""What a space is called: the files that come with sctune, a file of the user's, or a method's own space."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from sctune.config import MethodEntry, method_entries, method_entry, read_yaml
from sctune.errors import SpaceError, nearest

ALL_METHODS = "method"
"""The space over all methods, which is made for each profile (`sctune/search/plan/method_space.py`)."""


def shipped_spaces() -> dict[str, Path]:
    """Name -> file of the spaces that come with sctune."""
    inside = Path(str(files("sctune").joinpath("search_spaces")))
    # an editable install has them beside the package, as the repository does
    folder = inside if inside.is_dir() else inside.parent.parent / "search_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def method_spaces() -> dict[str, dict[str, Any]]:
    """Name of a method -> the space of all that is searched of it, as its file would have it."""
    return {
        entry.name: {
            "name": entry.name,
            "description": f"All that is searched of method {entry.name}",
            "set": {"method.name": entry.name},
            "parameters": {field: dict(body) for field, body in entry.hyperparameters.items()},
        }
        for entry in method_entries()
        if entry.hyperparameters
    }


def own_space_of(name_or_path: str | Path) -> MethodEntry | None:
    """The method whose own space is meant; None for spaces that come with sctune and for files, which go first."""
    name = str(name_or_path)
    return method_entry(name) if _file(name) is None and name in method_spaces() else None


def space_content(name_or_path: str | Path) -> tuple[dict[str, Any], str]:
    """What a space holds, and what messages call it; SpaceError with the nearest name for an unknown one."""
    path = _file(name_or_path)
    if path is not None:
        return read_yaml(path, SpaceError), str(path)
    name, own = str(name_or_path), method_spaces()
    if name not in own:
        raise SpaceError(f"unknown space {name!r}; {nearest(name, (*shipped_spaces(), *own, ALL_METHODS))}")
    return own[name], name


def _file(name_or_path: str | Path) -> Path | None:
    """None where the name can only be that of a method."""
    name, shipped = str(name_or_path), shipped_spaces()
    path = shipped.get(name, Path(name_or_path))
    return path if name in shipped or path.exists() or path.suffix in (".yaml", ".yml") else None
