"""The real `sctune` command; all end-to-end tests of a process share one home, each with its own studies.

What starts Ray or trains runs in a process of its own, as at a terminal. Commands on a study that is there are called
in the tests' process: starting Python and importing everything takes three seconds each time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from optuna.trial import FrozenTrial

from sctune.cli import main
from tests.processes import end_group

FOLDER = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("sctune")
HERE = {
    *("best", "cache", "delete", "deploy", "figures", "list", "logs", "predict", "rescore", "rollback"),
    *("status", "stop", "train"),
}
"""Commands that are called in this process, where their end is waited for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These come first, since they take longest: two processes that share the tests then end at the same time.

    What waits for a whole search has more time than other tests, on a machine that does other things too.
    """
    for item in items:
        if item.path.parent == FOLDER and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))
    items.sort(key=lambda item: item.path.parent != FOLDER)


class Sctune:
    """Runs the installed command; home: SCTUNE_HOME of all its processes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {**os.environ, "SCTUNE_HOME": str(home), "OMP_NUM_THREADS": "1"}

    def __call__(self, *words: object, code: int = 0, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """Run to the end and check the exit code."""
        if words[0] in HERE:
            return self.here(*words, code=code)
        with self.started(*words) as process:
            out, err = process.communicate(timeout=timeout)
        assert process.returncode == code, f"exit code {process.returncode}, expected {code}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def here(self, *given: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """The same in this process: for what neither starts Ray nor another process."""
        words, ended = [*map(str, given)], 0
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, self.env, clear=True),
            patch.object(sys, "argv", ["sctune", *words]),
            contextlib.chdir(self.home),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as leaving:
                ended = int(leaving.code or 0)
        assert ended == code, f"exit code {ended}, expected {code}\n{out.getvalue()}\n{err.getvalue()}"
        return subprocess.CompletedProcess(words, ended, out.getvalue(), err.getvalue())

    def json(self, *words: object, code: int = 0) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self(*words, "--json", code=code).stdout)
        return document

    @contextmanager
    def started(self, *words: object, stderr: Path | None = None) -> Iterator[subprocess.Popen[str]]:
        """A command that is still running, in a process group of its own; nothing of the group outlives the block.

        stderr: a file for it, to be read while the command runs; else a pipe.
        """
        command = [str(COMMAND), *map(str, words)]
        with (
            contextlib.ExitStack() as files,
            subprocess.Popen(
                command,
                env=self.env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if stderr is None else files.enter_context(stderr.open("w")),
                start_new_session=True,
                cwd=self.home,
            ) as process,
        ):
            try:
                yield process
            finally:
                end_group(process.pid)

    @staticmethod
    def end_group(group: int) -> None:
        end_group(group)

    def study(self, name: str) -> Path:
        return self.home / "studies" / name

    def record(self, name: str) -> list[FrozenTrial]:
        """The stored trials, in order of their numbers."""
        from sctune.search.study.study import Study

        study = Study.open(self.home / "studies", name)
        try:
            return study.record.load()
        finally:
            study.record.close()


def wait_until(condition: Callable[[], bool], timeout: float = 60, what: str = "it") -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {timeout:g} s"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def sctune(tmp_path_factory: pytest.TempPathFactory) -> Sctune:
    return Sctune(tmp_path_factory.mktemp("e2e"))


@pytest.fixture(scope="session")
def smoke(image_folder: Path) -> list[str]:
    """A search that takes seconds; to be completed with --name and more."""
    return ["search", "--profile", "smoke", "--data", str(image_folder), "--selection", "extra"]


@pytest.fixture(scope="session")
def runs_of(sctune: Sctune) -> Callable[[str], dict[int | None, Any]]:
    """Study name -> MLflow runs by trial number; None: the study's own run. Fails where a trial has two."""
    from sctune.tracking.server import STUDY_TAG, TRIAL_TAG, default_tracking_uri, find_experiment, mlflow_client

    uri = default_tracking_uri(sctune.home)

    def find(name: str) -> dict[int | None, Any]:
        study_id = json.loads((sctune.study(name) / "study.json").read_text())["study_id"]
        client = mlflow_client(uri)
        found: dict[int | None, Any] = {}
        for run in client.search_runs([find_experiment(client, uri)], f"tags.`{STUDY_TAG}` = '{study_id}'"):
            number = run.data.tags.get(TRIAL_TAG)
            key = None if number is None else int(number)
            assert key not in found, f"two runs of trial {key}"
            found[key] = run
        return found

    return find


@pytest.fixture(scope="session")
def history(sctune: Sctune) -> Callable[[str, str], list[tuple[int, float]]]:
    """Run id, metric name -> (step, value) of every stored point, in order of the steps."""
    from sctune.tracking.server import default_tracking_uri, mlflow_client

    def points(run_id: str, name: str = "selection_auroc") -> list[tuple[int, float]]:
        client = mlflow_client(default_tracking_uri(sctune.home))
        return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))

    return points


@pytest.fixture(scope="session", name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    return wait_until
