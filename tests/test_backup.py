"""Backup and restore of the services: a real PostgreSQL, files of a folder and of an S3 server."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Postgres
from tests.s3_server import BUCKET, SECRET, S3Server
from tests.services import OWNERS, PASSWORDS, backup, database_server


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with database_server() as running:
        for name in OWNERS:
            fill(running, name, 3)
        yield running


def fill(server: Postgres, name: str, rows: int) -> None:
    server.query(f"SET ROLE {OWNERS[name]}; DROP TABLE IF EXISTS things; CREATE TABLE things (id int, of text)", name)
    server.query(
        f"SET ROLE {OWNERS[name]}; INSERT INTO things SELECT n, '{name}' FROM generate_series(1, {rows}) n", name
    )


def rows(server: Postgres, name: str) -> list[tuple[object, ...]]:
    return server.query(
        "SELECT count(*), min(of), (SELECT tableowner FROM pg_tables WHERE tablename = 'things') FROM things", name
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_password_opens_its_own_databases(server: Postgres) -> None:
    import psycopg

    def connect(user: str, name: str) -> None:
        password = PASSWORDS[f"{user.upper()}_DB_PASSWORD"]
        psycopg.connect(host="127.0.0.1", port=server.port, user=user, password=password, dbname=name).close()

    connect("studies", "studies")
    connect("mlflow", "mlflow")
    connect("mlflow", "mlflow_auth")
    for user, name in (("studies", "mlflow_auth"), ("studies", "mlflow"), ("mlflow", "studies")):
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            connect(user, name)


def test_all_comes_back(server: Postgres, tmp_path: Path) -> None:
    import boto3

    (tmp_path / "s3").mkdir()
    s3 = S3Server(tmp_path / "s3")
    try:
        client = boto3.client(
            "s3", endpoint_url=s3.url, aws_access_key_id="k", aws_secret_access_key=SECRET, region_name="us-east-1"
        )
        client.put_object(Bucket=BUCKET, Key="1/run/artifacts/model.bin", Body=b"m" * 3_000_000)
        client.put_object(Bucket=BUCKET, Key="other", Body=b"")
        (tmp_path / "study" / "logs").mkdir(parents=True)
        (tmp_path / "study" / "logs" / "a b.log").write_text("line")
        before, local = {name: rows(server, name) for name in OWNERS}, files(tmp_path / "study")
        places = ["--files", f"s3://{BUCKET}", "--files", tmp_path / "study"]
        made = Path(backup(server, "save", tmp_path / "backups", *places, more=s3.env))
        # nobody else may read it, and it holds no secret of ours
        assert all(not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) for path in made.rglob("*"))
        assert not any(SECRET.encode() in content for content in files(made).values())

        for name in OWNERS:
            fill(server, name, 7)
        for key in s3.objects():
            client.delete_object(Bucket=BUCKET, Key=key)
        (tmp_path / "study" / "logs" / "a b.log").unlink()
        refused = backup(server, "restore", made, code=2, more=s3.env)
        assert "database mlflow is not empty; --replace drops what it holds" in refused
        assert s3.objects() == [] and rows(server, "studies")[0][0] == 7

        said = backup(server, "restore", made, "--replace", more=s3.env)
        assert said.endswith("is restored: databases mlflow, mlflow_auth, studies, 3 files")
        assert {name: rows(server, name) for name in OWNERS} == before
        assert {name: found[0][2] for name, found in before.items()} == OWNERS
        assert s3.objects() == ["1/run/artifacts/model.bin", "other"]
        body = client.get_object(Bucket=BUCKET, Key="1/run/artifacts/model.bin")["Body"].read()
        assert body == b"m" * 3_000_000 and files(tmp_path / "study") == local
    finally:
        s3.stop()


def test_a_damaged_backup_restores_nothing(server: Postgres, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "kept").write_text("as it was")
    made = Path(backup(server, "save", tmp_path / "backups", "--files", source))
    assert backup(server, "check", made).endswith("is whole: databases mlflow, mlflow_auth, studies, 1 files")
    (source / "kept").write_text("newer")
    fill(server, "studies", 5)
    for damaged in (made / "studies.dump", made / "files-0" / "kept"):
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-1] + b"?")
        for action in ("check", "restore"):
            complaint = backup(server, action, made, *(["--replace"] if action == "restore" else []), code=2)
            assert f"{damaged} is missing or damaged" in complaint
        damaged.write_bytes(whole)
    assert rows(server, "studies")[0][0] == 5 and (source / "kept").read_text() == "newer"
    # without what it depends on nothing is half-written either
    assert "connection" in backup(server, "save", tmp_path / "away", code=2, more={"PGPORT": "1"})
    assert list((tmp_path / "away").iterdir()) == []


def test_the_latest_backups_are_kept(server: Postgres, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    for day in range(1, 5):
        old = folder / f"2026-01-0{day}T000000Z"
        old.mkdir(parents=True)
        (old / "backup.json").write_text(json.dumps({"format_version": 1}))
    (folder / "notes").mkdir()
    made = Path(backup(server, "save", folder, "--keep", 3, "--database", "studies"))
    left = ["2026-01-03T000000Z", "2026-01-04T000000Z", made.name, "notes"]
    assert sorted(path.name for path in folder.iterdir()) == left
