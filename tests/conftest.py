"""Fixtures for all tests. Importing this file imports neither torch nor ray nor mlflow."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sctune.config import TrialConfig

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
        # a server of MLflow's would start ten processes for jobs that nobody gives it
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
)
# those of the shell would send what the tests make to somebody's server
for _name in (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "SCTUNE_TRACKING_URI",
    "SCTUNE_STORAGE",
):
    os.environ.pop(_name, None)
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def sctune_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root of its own for the studies, the cache and the tracking store of each test."""
    home = tmp_path / "sctune-home"
    monkeypatch.setenv("SCTUNE_HOME", str(home))
    return home


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs sctune in this process: exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        from sctune.cli import main

        monkeypatch.setattr(sys, "argv", ["sctune", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return run


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


TINY = {
    "data.image_size": 64,
    "data.n_anomalies": 4,
    "data.selection": "extra",
    "model.backbone": "efficientnet_lite0",
    "model.weights": "random",
    "model.tap": "middle",
    "model.n_scales": 1,
    "model.freeze": 10,
    "model.patch_place": "grid2d",
    "augment.grid_size": 8,
    "budget.epochs": 2,
    "budget.iterations": 2,
    "budget.batch_size": 6,
    "runtime.device": "cpu",
}


def draw(rng: np.random.Generator, defect: str, size: int = 72) -> Image.Image:
    """A striped texture; the defects are a bright spot, a dark scratch and a grey patch."""
    rows = np.sin(np.arange(size) / 3 + rng.uniform(0, 6))[:, None] * 40 + 120
    image = np.clip(rows + rng.normal(0, 8, (size, size)), 0, 255)
    y, x = rng.integers(10, size - 30, 2)
    if defect == "spot":
        image[y : y + 12, x : x + 12] = 250
    elif defect == "scratch":
        image[y : y + 3, x : x + 25] = 10
    elif defect == "patch":
        image[y : y + 20, x : x + 20] = 128
    return Image.fromarray(image.astype(np.uint8)).convert("RGB")


def make_folder(root: Path, seed: int = 0, defects: tuple[str, ...] = ("spot", "scratch", "patch")) -> Path:
    """A small image folder in the MVTec layout: 50 + 12 normal images and 12 of each defect."""
    rng = np.random.default_rng(seed)
    counts = {"train/good": 50, "test/good": 12} | {f"test/{defect}": 12 for defect in defects}
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            draw(rng, folder.split("/")[1]).save(root / folder / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "stripes")


@pytest.fixture(scope="session")
def two_categories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("categories")
    make_folder(root / "first", seed=1)
    make_folder(root / "second", seed=2)
    return root


@pytest.fixture(scope="session")
def tiny(image_folder: Path) -> TrialConfig:
    """A configuration that trains on the small folder in a second."""
    return TrialConfig().override({**TINY, "data.source": str(image_folder)})


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and no runs, to be copied: making the tables takes seconds."""
    from sctune.tracking.server import check_tracking, default_tracking_uri

    folder = tmp_path_factory.mktemp("empty-store")
    check_tracking(default_tracking_uri(folder))
    return folder / "mlflow.db"


POSTGRES_PASSWORD = "canary-postgres-7fa3"
"""Of the user `sctune`; searched for wherever it must not be."""


class Postgres:
    """A server in `folder`, started; url: with the password. As root it runs as user postgres, which it insists on."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or _free_port()
        self._bin = _postgres_binaries()
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        secret = folder / "password"
        secret.write_text(POSTGRES_PASSWORD)
        secret.chmod(0o644)
        self._run("initdb", "-D", str(folder / "data"), "-U", "sctune", "-A", "scram-sha-256", f"--pwfile={secret}")
        self.start()
        self.create("studies")

    def url(self, database: str = "studies", password: str | None = POSTGRES_PASSWORD) -> str:
        user = "sctune" if password is None else f"sctune:{password}"
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k '' -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-w", "-o", options, "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")

    password = POSTGRES_PASSWORD

    def dump(self, database: str) -> str:
        """All that a database holds, as text."""
        command = [self._bin / "pg_dump", "-h", "127.0.0.1", "-p", str(self.port), "-U", "sctune", database]
        environment = {**os.environ, "PGPASSWORD": self.password}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    def create(self, database: str) -> None:
        self.query(f'CREATE DATABASE "{database}"', "postgres")

    def query(self, statement: str, database: str = "studies") -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            answer = connection.execute(statement)  # type: ignore[call-overload]
            return answer.fetchall() if answer.description else []

    def _run(self, program: str, *words: str) -> None:
        command = [str(self._bin / program), *words]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command]
        # a server that inherits a pipe would keep it open
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, cwd="/", timeout=60, check=False)
            output.seek(0)
            assert done.returncode == 0, output.read().decode()


def _postgres_binaries() -> Path:
    """Folder of initdb and pg_ctl; skips the test where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        pytest.skip("no PostgreSQL binaries here; apt-get install postgresql")
    return Path(on_path).resolve().parent


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One real server for the tests of a process; stopped at the end. Skips where PostgreSQL is not installed."""
    _postgres_binaries()
    # user postgres cannot reach pytest's own folders
    folder = Path(tempfile.mkdtemp(prefix="sctune-pg-", dir="/tmp"))
    folder.chmod(0o755)
    server = Postgres(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
