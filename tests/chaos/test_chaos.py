"""The chaos runners: one run here (kill -9 while a checkpoint is half-written), many with the slow tests.

`python tests/chaos/run.py --runs 40` and `python tests/chaos/faults.py --runs 24` do many by hand.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("run.py")


def run(*words: str, timeout: float, runner: Path = RUNNER) -> str:
    done = subprocess.run(
        [sys.executable, str(runner), *words], capture_output=True, text=True, timeout=timeout, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.timeout(420)
def test_a_killed_search_loses_nothing() -> None:
    """Values of curves are compared in tests/e2e/test_stop_resume.py, so no undisturbed search is run for them here."""
    table = run("--runs", "1", "--seed", "4", "--kind", "tpe", timeout=400)
    assert "| kill -9 | checkpoint half-written | 1 | 1 | 0 | 0 |" in table


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_killed_searches_lose_nothing() -> None:
    table = run("--runs", "40", "--seed", "7", timeout=3500)
    hits = int(table.splitlines()[-1].split()[0])
    assert hits >= 32


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_faults_of_mlflow_and_of_drivers_lose_nothing() -> None:
    table = run("--runs", "24", "--seed", "3", timeout=1700, runner=RUNNER.with_name("faults.py"))
    assert "| all |  | 24 |" in table
