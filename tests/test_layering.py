"""Keeps the floors of the package apart: nothing imports upward, and the lower rooms stay free of Ray and MLflow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sctune"
FLOORS = (
    {"cli", "__main__"},
    {"pages"},
    {"reproduce", "confirm"},
    {"serve", "manage"},
    {"search"},
    {"search.simulate"},
    {"search.run"},
    {"search.reconcile"},
    {"search.plan"},
    {"search.study"},
    {"search.suggest", "search.rules", "search.cluster"},
    {"search.space", "deploy", "doctor"},
    {"tracking", "trial"},
    {"train"},
    {
        "model",
        "methods.deviation",
        "methods.untrained",
        "methods.mlep",
        "methods.saoe",
        "methods.ssm",
        "methods.cutpaste",
        "methods.kdad",
    },
    {"methods", "augment", "data"},
    {"metrics", "report"},
    {"config"},
    {"backbones"},
    {"plugins", "errors", "files", "geometry", "paths", "text", "urls", ""},
)
"""Rooms from the roof down; "" is `sctune/__init__.py`. A new module at the top level gets its floor here."""
SPLIT = {"search", "methods"}
"""Rooms whose sub-packages are rooms of their own; the room itself is its `__init__.py` and its single files."""
HEIGHT = {room: -number for number, floor in enumerate(FLOORS) for room in floor}
SEARCH_LIBRARIES = {"ray", "optuna", "mlflow"}
BELOW_TRIAL = (
    "train",
    "model",
    "methods",
    "methods.deviation",
    "methods.untrained",
    "methods.mlep",
    "methods.saoe",
    "methods.ssm",
    "methods.cutpaste",
    "methods.kdad",
    "metrics",
    "backbones",
    "augment",
    "data",
)
BANNED = {room: SEARCH_LIBRARIES for room in BELOW_TRIAL} | {"trial": {"mlflow"}}
MAX_LINES = 60
FOREIGN_SIGNATURES = {"set_search_properties", "on_trial_start"}
"""Methods that a library calls with keywords of its own choice."""

Trees = dict[str, ast.Module]
Imports = dict[str, list[tuple[int, str]]]


def read_trees(folder: Path) -> Trees:
    """Dotted module name (without a trailing `.__init__`) -> syntax tree of each file."""
    trees = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return trees


def imported_modules(module: str, tree: ast.Module, modules: Trees) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import anywhere in a file, inside functions and type-checking blocks too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write absolute imports"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in modules else base


def read_imports(trees: Trees) -> Imports:
    """Module -> its imports; read once, since a walk over a tree takes longer than all that is asked of them."""
    return {module: list(imported_modules(module, tree, trees)) for module, tree in trees.items()}


def room_of(module: str) -> str:
    _, *parts = module.split(".")
    if len(parts) > 1 and parts[0] in SPLIT and (PACKAGE / parts[0] / parts[1]).is_dir():
        return ".".join(parts[:2])
    return parts[0] if parts else ""


def upward_imports(imports: Imports) -> list[str]:
    found = []
    for module, lines in imports.items():
        for line, name in lines:
            if name.split(".")[0] == "sctune" and HEIGHT[room_of(name)] > HEIGHT[room_of(module)]:
                found.append(f"{module}:{line} imports {name}, which is on a higher floor")
    return found


def reachable_libraries(imports: Imports, start: str) -> dict[str, str]:
    """Top-level library -> the module that imports it, over everything that `start` imports, directly or not."""
    seen, todo, libraries = {start}, [start], {}
    while todo:
        module = todo.pop()
        for _, name in imports[module]:
            top = name.split(".")[0]
            if top != "sctune":
                libraries.setdefault(top, module)
            elif name in imports and name not in seen:
                seen.add(name)
                todo.append(name)
    return libraries


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node


@pytest.fixture(scope="module")
def trees() -> Trees:
    return read_trees(PACKAGE)


@pytest.fixture(scope="module")
def imports(trees: Trees) -> Imports:
    return read_imports(trees)


def test_every_room_has_a_floor(trees: Trees) -> None:
    unknown = sorted({room_of(module) for module in trees} - set(HEIGHT))
    assert not unknown, f"name the floor of {unknown} in FLOORS"


def test_nothing_imports_upward(imports: Imports) -> None:
    assert upward_imports(imports) == []


def test_upward_import_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "sctune"
    for name, source in {
        "__init__.py": "",
        "errors.py": "def late():\n    from sctune import cli\n    return cli\n",
        "cli.py": "import sctune.errors\n",
    }.items():
        package.mkdir(exist_ok=True)
        (package / name).write_text(source)
    found = upward_imports(read_imports(read_trees(package)))
    assert found == ["sctune.errors:2 imports sctune.cli, which is on a higher floor"]


def test_rooms_of_one_floor_do_not_import_in_a_circle(imports: Imports) -> None:
    edges: dict[str, set[str]] = {}
    for module, lines in imports.items():
        names = (name for _, name in lines if name.split(".")[0] == "sctune")
        edges.setdefault(room_of(module), set()).update(map(room_of, names))
    while leaves := [room for room, below in edges.items() if not (below & edges.keys()) - {room}]:
        for room in leaves:
            del edges[room]
    assert not edges, f"rooms that import each other: {edges}"


def test_lower_rooms_reach_no_search_library(imports: Imports) -> None:
    found = []
    for module in imports:
        if banned := BANNED.get(room_of(module), set()):
            reached = reachable_libraries(imports, module)
            found += [f"{module} reaches {library} through {reached[library]}" for library in banned & reached.keys()]
    assert found == []


def test_a_library_behind_another_module_is_reached() -> None:
    imports = {
        "sctune.train": [(1, "torch"), (2, "sctune.files")],
        "sctune.files": [(1, "sctune.train"), (2, "ray.util")],
        "sctune.cli": [(1, "mlflow")],
    }
    assert reachable_libraries(imports, "sctune.train") == {"torch": "sctune.train", "ray": "sctune.files"}


def test_importing_loads_no_search_library(trees: Trees) -> None:
    """All of it in one process, which starts torch once: first what lies below `trial`, then that room itself."""
    script = ["import sys"]
    for rooms, banned in ((BELOW_TRIAL, SEARCH_LIBRARIES), (("trial",), BANNED["trial"])):
        modules = [module for module in trees if room_of(module) in rooms]
        script += [f"import {', '.join(modules)}", f"print(*sorted(set(sys.modules) & {banned!r}))"]
    words = [sys.executable, "-c", "\n".join(script)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["", ""]


def test_functions_are_short(trees: Trees) -> None:
    found = []
    for module, tree in trees.items():
        for node in functions(tree):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_LINES:
                found.append(f"{module}:{node.lineno} has {length} lines")
    assert found == []


def test_no_function_takes_any_keyword(trees: Trees) -> None:
    """A misspelt option must be an error, so nothing swallows keywords that it does not know."""
    found = []
    for module, tree in trees.items():
        for node in functions(tree):
            if node.args.kwarg and getattr(node, "name", "lambda") not in FOREIGN_SIGNATURES:
                found.append(f"{module}:{node.lineno}")
    assert found == []
