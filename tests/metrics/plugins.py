"""A package from outside with entry points, as pip leaves one: a module and its metadata."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def shown(section: str) -> str:
    """The first Python block of a section of docs/extending.md: what the page shows is what the tests add."""
    text = (DOCS / "extending.md").read_text(encoding="utf-8")
    return text.partition(f"## {section}\n")[2].partition("```python\n")[2].partition("```")[0]


def install(folder: Path, name: str, target: str, source: str, group: str = "sctune.objectives") -> Path:
    """Make `folder` hold the module `outside` and an entry point `name` to `target`; the folder goes on sys.path."""
    metadata = folder / "outside-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "outside.py").write_text(source, encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = outside:{target}\n")
    return folder
