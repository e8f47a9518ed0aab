#!/usr/bin/env python3
"""Backup and restore of what a team's studies live in: PostgreSQL databases and the files of MLflow and checkpoints.

    backup.py save    /backups --files s3://mlflow [--files s3://sctune] [--keep 14]
    backup.py check   /backups/2026-11-30T220000Z
    backup.py restore /backups/2026-11-30T220000Z [--replace]

The server is named by PostgreSQL's own variables (PGHOST, PGPORT, PGUSER, PGPASSWORD or ~/.pgpass), S3-compatible
storage by AWS's (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY). Needs pg_dump and pg_restore, not older
than the server, and pyarrow. Searches may run meanwhile: the databases are taken in an order in which MLflow never
knows more than the record, and the files after them. Exit codes: 0 done, 2 refused or failed, with one line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyarrow import fs

FORMAT_VERSION = 1
MANIFEST = "backup.json"
DATABASES = ("mlflow", "mlflow_auth", "studies")
"""MLflow before the record, of which it is a copy."""

AT_A_TIME = 8
CHUNK = 1 << 20


class BackupError(Exception):
    """What went wrong, in one line."""


def save(folder: Path, databases: list[str], sources: list[str], keep: int) -> Path:
    """A new backup in `folder`, whole or not at all; of the older ones the latest keep - 1 stay, 0: all."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
    target, partial = folder / stamp, folder / f".{stamp}.partial"
    if target.exists():
        raise BackupError(f"{target} is there already; one backup a second is enough")
    partial.mkdir(mode=0o700)
    try:
        manifest: dict[str, Any] = {"format_version": FORMAT_VERSION, "made": stamp, "databases": {}, "files": []}
        for name in databases:
            dump = partial / f"{name}.dump"
            run("pg_dump", "--format=custom", f"--file={dump}", name)
            manifest["databases"][name] = {"file": dump.name, "sha256": digest(dump)}
        for number, source in enumerate(sources):
            taken = take_files(source, partial / f"files-{number}")
            manifest["files"].append({"source": bare(source), "folder": f"files-{number}", "sha256": taken})
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))[: -keep or None] if keep else []:
        shutil.rmtree(old)
    return target


def check(backup: Path) -> dict[str, Any]:
    """The manifest of a backup whose files are all what they were."""
    try:
        manifest: dict[str, Any] = json.loads((backup / MANIFEST).read_text())
    except (OSError, ValueError) as problem:
        raise BackupError(f"{backup} is no backup: {problem}") from None
    if manifest.get("format_version") != FORMAT_VERSION:
        raise BackupError(f"{backup} is of another version of this program: {manifest.get('format_version')}")
    expected = {row["file"]: row["sha256"] for row in manifest["databases"].values()}
    for row in manifest["files"]:
        expected |= {f"{row['folder']}/{name}": value for name, value in row["sha256"].items()}
    for name, value in expected.items():
        path = backup / name
        if not path.is_file() or digest(path) != value:
            raise BackupError(f"{path} is missing or damaged; nothing was restored, take an older backup")
    return manifest


def restore(backup: Path, sources: list[str], replace: bool) -> dict[str, Any]:
    """Bring back a backup that is whole. sources: other places for the files, in their order; none: where they were.

    The databases exist (databases.sql) and are empty, or are replaced.
    """
    manifest = check(backup)
    rows = manifest["files"]
    if sources and len(sources) != len(rows):
        raise BackupError(f"the backup has files of {len(rows)} places ({', '.join(row['source'] for row in rows)})")
    if not replace:
        for name in manifest["databases"]:
            if tables(name):
                raise BackupError(f"database {name} is not empty; --replace drops what it holds")
    for row, source in zip(rows, sources or [row["source"] for row in rows], strict=True):
        give_files(backup / row["folder"], source, row["sha256"])
    for name, row in manifest["databases"].items():
        # in one transaction: a database is as it was saved, or as it was before
        run(
            "pg_restore",
            "--exit-on-error",
            "--single-transaction",
            *(("--clean", "--if-exists") if replace else ()),
            f"--dbname={name}",
            str(backup / row["file"]),
        )
    return manifest


def tables(database: str) -> int:
    count = run("psql", "-tAXc", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", f"--dbname={database}")
    return int(count)


def take_files(source: str, target: Path) -> dict[str, str]:
    """Copy all files below a folder or s3:// URI; name -> digest. What is removed meanwhile is left out."""
    system, root = place(source)
    target.mkdir()

    def take(name: str) -> tuple[str, str] | None:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with system.open_input_stream(f"{root}/{name}") as stream, path.open("wb") as copy:
                shutil.copyfileobj(stream, copy, CHUNK)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            return None
        return name, digest(path)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return dict(filter(None, pool.map(take, names(system, root))))


def give_files(folder: Path, target: str, expected: dict[str, str]) -> None:
    """Put files where they were; what else lies there stays."""
    system, root = place(target)

    def give(name: str) -> None:
        path = f"{root}/{name}"
        if not isinstance(system, fs.S3FileSystem):
            system.create_dir(path.rpartition("/")[0], recursive=True)
        with (folder / name).open("rb") as stream, system.open_output_stream(path) as copy:
            shutil.copyfileobj(stream, copy, CHUNK)

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(give, expected))


def names(system: fs.FileSystem, root: str) -> Iterator[str]:
    """Of the files below a folder, relative to it."""
    for info in system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True)):
        if info.type == fs.FileType.File:
            yield info.path.removeprefix(f"{root}/")


def place(uri: str) -> tuple[fs.FileSystem, str]:
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    system, root = fs.FileSystem.from_uri(uri)
    return system, root.rstrip("/")


def bare(uri: str) -> str:
    """The manifest is no place for keys."""
    scheme, sign, rest = uri.partition("://")
    return f"{scheme}{sign}{rest.rpartition('@')[2]}" if sign else str(Path(uri).absolute())


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def run(*words: str) -> str:
    """One of PostgreSQL's programs; what it printed."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BackupError(f"no {words[0]} here; install PostgreSQL's client programs") from None
    if done.returncode != 0:
        raise BackupError(f"{words[0]}: {' '.join(done.stderr.split())[:400]}")
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("save", "check", "restore"))
    parser.add_argument("folder", type=Path, help="of all backups (save), or of the one to check or restore")
    parser.add_argument("--database", action="append", help=f"default: {' '.join(DATABASES)}")
    parser.add_argument("--files", action="append", default=[], help="a folder or s3:// URI with all that is below it")
    parser.add_argument("--keep", type=int, default=0, help="backups that stay, the new one included; default: all")
    parser.add_argument("--replace", action="store_true", help="drop what the databases hold")
    words = parser.parse_args()
    os.umask(0o077)  # a dump holds everything
    try:
        if words.action == "save":
            print(save(words.folder, words.database or list(DATABASES), words.files, words.keep))
            return
        manifest = check(words.folder) if words.action == "check" else restore(words.folder, words.files, words.replace)
    except (BackupError, OSError) as problem:
        print(f"backup: {' '.join(str(problem).split())}", file=sys.stderr)
        sys.exit(2)
    files = sum(len(row["sha256"]) for row in manifest["files"])
    done = "is whole" if words.action == "check" else "is restored"
    print(f"{words.folder} {done}: databases {', '.join(manifest['databases'])}, {files} files")


if __name__ == "__main__":
    main()
