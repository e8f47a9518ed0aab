"""Fixtures for all tests. Importing this file imports neither torch nor ray nor mlflow."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# before any test imports them: nothing is sent anywhere, and two cores are not shared out among eight threads
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        # ray reads the mode once, when it is imported
        "RAY_AUTH_MODE": "token",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MPLBACKEND": "Agg",
    }
)
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def sctune_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of its own for the studies, the cache and the tracking store of each test."""
    home = tmp_path / "sctune-home"
    monkeypatch.setenv("SCTUNE_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top folder of the clone."""
    return REPOSITORY


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package built as a wheel from this clone, once per test run; needs no network."""
    return build("--wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this clone."""
    return build("--sdist", tmp_path_factory.mktemp("sdist"))


def build(kind: str, folder: Path, source: Path = REPOSITORY) -> Path:
    """`python -m build` into an empty folder; returns the one file that came out."""
    command = [sys.executable, "-m", "build", kind, "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.iterdir()
    return path
