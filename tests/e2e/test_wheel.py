"""The built wheel in a fresh environment: it brings its spaces, and the searcher's contract holds with it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel; what it depends on is taken from the present environment."""
    root = tmp_path_factory.mktemp("fresh")
    venv.create(root, with_pip=False)
    (site,) = root.glob("lib/python*/site-packages")
    # behind the wheel's own folder; .pth files are not followed there, so the clone itself stays out
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    install = [sys.executable, "-m", "pip", f"--python={root / 'bin' / 'python'}", "install", "--no-deps"]
    done = subprocess.run(
        [*install, "--no-index", "--ignore-installed", str(wheel)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return root / "bin"


def run(fresh: Path, *words: object, cwd: Path, timeout: float = 110) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PATH": f"{fresh}:/usr/bin:/bin"
    }
    done = subprocess.run(
        [str(fresh / str(words[0])), *map(str, words[1:])],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_works_by_itself(fresh: Path, tmp_path: Path) -> None:
    place = run(fresh, "python", "-c", "import sctune; print(sctune.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(fresh.parent)
    listed = run(fresh, "sctune", "spaces", cwd=tmp_path)
    assert {line.split()[0] for line in listed.splitlines()} >= {"threshold_patch", "fig7a", "full"}
    assert "augment.threshold" in run(fresh, "sctune", "spaces", "threshold_patch", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_contract_holds_with_the_wheel(fresh: Path, repository: Path, tmp_path: Path) -> None:
    """The fast half of tests/search/test_contract.py, from a copy outside the clone."""
    copy = tmp_path / "test_contract.py"
    guard = f"import sctune\nassert sctune.__file__.startswith({str(fresh.parent)!r}), sctune.__file__\n"
    source = (repository / "tests" / "search" / "test_contract.py").read_text()
    head, sign, body = source.partition("from __future__ import annotations\n")
    copy.write_text(head + sign + guard + body)
    words = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-o", "markers=slow: long", "--rootdir", tmp_path, copy]
    shown = run(fresh, "python", "-m", "pytest", *words, cwd=tmp_path, timeout=560)
    assert "passed" in shown.splitlines()[-1]
