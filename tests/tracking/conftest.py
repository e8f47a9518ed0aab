from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from sctune.tracking.server import check_tracking, default_tracking_uri, ui_command, ui_environment


class MlflowServer:
    """A real MLflow server on the loopback address, which can be stopped and started again on the same store."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._store = f"sqlite:///{folder / 'server.db'}"
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ui_command(self._store, self.port),
                env=ui_environment(self._store),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 90
        while time.monotonic() < end:
            try:
                with urlopen(f"{self.uri}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (URLError, OSError):
                time.sleep(0.2)
        raise RuntimeError(f"the MLflow server did not start: {self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and no runs, to be copied: making the tables takes seconds."""
    folder = tmp_path_factory.mktemp("empty-store")
    check_tracking(default_tracking_uri(folder))
    return folder / "mlflow.db"


@pytest.fixture
def local_uri(tmp_path: Path, empty_store: Path) -> str:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return default_tracking_uri(tmp_path)


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copyfile(empty_store, folder / "server.db")
    server = MlflowServer(folder)
    server.start()
    yield server
    server.stop()
