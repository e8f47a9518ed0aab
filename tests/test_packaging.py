"""The distributions carry what they must, and the versions in pyproject.toml and constraints.txt agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

Project = dict[str, Any]
TESTED_EXTRAS = ("demo", "dev")


@pytest.fixture(scope="module")
def project(repository: Path) -> Project:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, Version]:
    """Canonical name -> exact version of constraints.txt."""
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    entries = [line.partition("==") for line in lines if line and not line.startswith("#")]
    assert all(sign == "==" for _, sign, _ in entries), "exact versions only"
    return {canonicalize_name(name): Version(version) for name, _, version in entries}


def all_requirements(project: Project) -> list[Requirement]:
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for texts in [project["dependencies"], *extras] for text in texts]


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ["", *extras])


def needed_distributions(requirements: Iterable[str]) -> Iterator[str]:
    """Canonical names of everything that these requirements pull in, as the installed packages declare it."""
    todo = [Requirement(text) for text in requirements]
    seen = set()
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        yield key[0]
        declared = map(Requirement, distribution(requirement.name).requires or [])
        todo += [each for each in declared if applies(each, requirement.extras)]


def test_wheel_carries_spaces_and_profiles_and_nothing_else(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    spaces = {f"sctune/search_spaces/{path.name}" for path in (repository / "search_spaces").glob("*.yaml")}
    assert spaces and spaces <= names
    assert "sctune/profiles.yaml" in names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"sctune"}
    assert not [name for name in names if "test" in name or name.endswith(".pyc")]


def test_wheel_says_what_it_needs(wheel: Path, project: Project) -> None:
    archive = zipfile.ZipFile(wheel)
    (path,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    metadata = archive.read(path).decode()
    assert "Requires-Python: >=3.11" in metadata and "License-Expression: Apache-2.0" in metadata
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) == set(project["optional-dependencies"])
    entry_points = archive.read(path.replace("METADATA", "entry_points.txt")).decode()
    assert "sctune = sctune.cli:main" in entry_points


def test_version_comes_from_the_package(wheel: Path, repository: Path) -> None:
    source = (repository / "sctune" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'__version__ = "(.+)"', source)
    assert version and wheel.name == f"sctune-{version[1]}-py3-none-any.whl"


def test_wheel_finds_its_spaces_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """Not the clone's: a folder elsewhere holds only the wheel's content."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    module = "sctune.search.space.named"
    script = f"from {module} import shipped_spaces; print(*map(str, shipped_spaces().values()), sep='\\n')"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [Path(line) for line in done.stdout.splitlines()]
    assert found and all(path.parent == tmp_path / "site" / "sctune" / "search_spaces" for path in found)


def test_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if (path / "pyproject.toml").is_file())
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "out"),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (again,) = (tmp_path / "out").glob("*.whl")
    contents = [
        {entry.filename: entry.CRC for entry in zipfile.ZipFile(path).infolist() if "RECORD" not in entry.filename}
        for path in (again, wheel)
    ]
    assert contents[0] == contents[1]


def test_every_requirement_has_both_bounds(project: Project) -> None:
    open_ended = []
    for requirement in map(Requirement, project["dependencies"]):
        operators = {specifier.operator for specifier in requirement.specifier}
        if "==" not in operators and not ({">="} <= operators and operators & {"<", "<="}):
            open_ended.append(str(requirement))
    assert open_ended == []


def test_constraints_satisfy_the_bounds(project: Project, pins: dict[str, Version]) -> None:
    wrong = []
    for requirement in all_requirements(project):
        version = pins.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            wrong.append(f"{requirement}: pinned to {version}")
    assert wrong == []


def test_constraints_are_plain_versions(repository: Path) -> None:
    """No local version (+cpu), no address, no editable line: they must hold on every machine."""
    text = "\n".join(
        line for line in (repository / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert not re.search(r"\+|@|://|^-", text, re.MULTILINE)


def test_constraints_pin_everything_that_is_pulled_in(project: Project, pins: dict[str, Version]) -> None:
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + [text for extra in TESTED_EXTRAS for text in extras[extra]]
    try:
        missing = set(needed_distributions(requirements)) - pins.keys()
    except PackageNotFoundError as problem:
        pytest.fail(f"{problem}: the environment is not the one that `make env` makes")
    assert missing == set()


def test_every_import_is_declared(project: Project, repository: Path) -> None:
    extras = [text for extra, texts in project["optional-dependencies"].items() if extra != "dev" for text in texts]
    declared = {canonicalize_name(Requirement(text).name) for text in project["dependencies"] + extras}
    providers = packages_distributions()
    undeclared = set()
    for path in (repository / "sctune").rglob("*.py"):
        names = set(imported_names(ast.parse(path.read_text(encoding="utf-8"))))
        for name in names - sys.stdlib_module_names - {"sctune"}:
            if not declared & {canonicalize_name(provider) for provider in providers.get(name, [name])}:
                undeclared.add(f"{path.relative_to(repository)}: {name}")
    assert undeclared == set()


def imported_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]
