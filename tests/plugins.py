"""Another package on the path: a module and the entry points that it is installed with, without an installer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


def documented(section: str) -> str:
    """The Python code of a section of docs/extending.md."""
    text = DOCS.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def write_package(folder: Path, name: str, source: str, entry_points: Mapping[str, Mapping[str, str]]) -> Path:
    """A folder for `sys.path` or PYTHONPATH. entry_points: group -> name -> "module:object"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
        for group, points in entry_points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    return folder


def install_objective(folder: Path, name: str, target: str, source: str) -> Path:
    """`folder` with the module `outside` and an objective `name` that is its `target`."""
    return write_package(folder, "outside", source, {"sctune.objectives": {name: f"outside:{target}"}})
