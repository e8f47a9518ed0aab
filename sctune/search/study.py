"""A study on disk: its folder, its manifest (what was asked for), its record (what happened) and its lock."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sctune.config import Task, TrialConfig
from sctune.errors import StudyError, nearest
from sctune.search.operate_process import driver_facts
from sctune.search.record import Record
from sctune.search.space import Space

MANIFEST = "study.json"
DRIVER = "driver.json"
FORMAT_VERSION = 1

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SchedulerSpec(Frozen):
    name: str
    grace: int | None = None
    factor: int = 3


class SelectionSpec(Frozen):
    mode: str
    reason: str = ""


class DataSpec(Frozen):
    name: str
    digest: str
    counts: dict[str, int] = {}
    licence: str | None = None
    attribution: str | None = None


class ResourceSpec(Frozen):
    cpus: float = 1.0
    gpus: float = 0.0
    max_concurrent: int = 1
    asked_concurrent: int | None = None


class Launch(Frozen):
    """One run of the driver; times are ISO 8601 in UTC; no end: it runs, or it was killed."""

    started: str
    ended: str | None = None
    reason: str | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took; None where it has not ended."""
        if self.ended is None:
            return None
        return (datetime.fromisoformat(self.ended) - datetime.fromisoformat(self.started)).total_seconds()


class StudyManifest(Frozen):
    """What was asked for; written once, and changed only by a larger budget and the list of launches.

    config: the base TrialConfig tree, with the space's `set:` and the command line merged.
    storage_path: URI that all nodes see (checkpoints); storage_url: SQLAlchemy URL of the record, None: SQLite in
    the study's folder. checkpoint_interval: seconds. splits: task key -> digest of its lists of files.
    """

    format_version: Literal[1] = 1
    study_id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    name: str
    created: str
    space: dict[str, Any]
    profile: str
    config: dict[str, Any]
    tasks: tuple[Task, ...] = Field(min_length=1, strict=False)
    sampler: str
    sampler_seed: int = Field(0, ge=0, lt=2**32)
    scheduler: SchedulerSpec
    trials: int = Field(ge=1)
    selection: SelectionSpec
    partition_seed: int = 0
    splits: dict[str, str] = {}
    folds: int = 2
    data: DataSpec
    storage_path: str
    tracking_uri: str
    storage_url: str | None = None
    keep_best: int = 3
    max_disk: int | None = None
    checkpoint_interval: float = 60.0
    resources: ResourceSpec = ResourceSpec()
    versions: dict[str, str] = {}
    git_commit: str | None = None
    launches: tuple[Launch, ...] = ()

    def trial_config(self) -> TrialConfig:
        return TrialConfig.load(self.config)

    def build_space(self) -> Space:
        return Space.from_dict(self.space, self.trial_config())

    def config_of(self, params: Mapping[str, Any]) -> TrialConfig:
        """The complete configuration of a trial, from its parameters as results show them (with `variant`)."""
        return self.build_space().config(params)


def valid_name(name: str) -> str:
    """The name itself; StudyError if it could leave the study root or is no plain file name."""
    if not _NAME.fullmatch(name):
        raise StudyError(
            f"study name {name!r}: use letters, digits, '.', '_' and '-', no leading '.', at most 80 characters"
        )
    return name


class Study:
    """A study in `root/name`; made by `create` or `open`."""

    def __init__(self, folder: Path, manifest: StudyManifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def create(cls, root: Path, manifest: StudyManifest) -> Study:
        """A new study with an empty record; raises StudyError if the name is taken or the folder not writable."""
        folder = root / valid_name(manifest.name)
        if folder.exists():
            raise StudyError(
                f"study {manifest.name!r} exists in {root}; go on with `sctune resume {manifest.name}` "
                "or choose another --name"
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except OSError as problem:
            raise StudyError(f"cannot write the study folder {folder}: {problem.strerror}") from None
        study = cls(folder, manifest)
        try:
            Record(study.record_url, manifest.name, create=True).close()
            study._save(manifest)
        except BaseException:
            # nothing half-written: the name stays free
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return study

    @classmethod
    def open(cls, root: Path, name: str) -> Study:
        """An existing study; StudyError with the nearest name when there is none, or its manifest cannot be read."""
        path = root / valid_name(name) / MANIFEST
        if not path.is_file():
            raise StudyError(f"no study {name!r} in {root}; {nearest(name, list_studies(root))}")
        return cls(path.parent, _read_manifest(path))

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def record_url(self) -> str:
        return self.manifest.storage_url or f"sqlite:///{self.folder.resolve() / 'record.db'}"

    @cached_property
    def record(self) -> Record:
        """Opened on first use; close it when done."""
        return Record(self.record_url, self.name)

    def with_trials(self, trials: int) -> StudyManifest:
        """Set the number of trials of the whole study (a larger budget on resume)."""
        return self._save(self.manifest.model_copy(update={"trials": trials}))

    def with_max_disk(self, max_disk: int) -> StudyManifest:
        """Set the limit of the study's files in bytes."""
        return self._save(self.manifest.model_copy(update={"max_disk": max_disk}))

    def add_launch(self, started: str) -> StudyManifest:
        launches = (*self.manifest.launches, Launch(started=started))
        return self._save(self.manifest.model_copy(update={"launches": launches}))

    def end_launch(self, ended: str, reason: str) -> StudyManifest:
        """Close the latest launch."""
        *earlier, last = self.manifest.launches
        launches = (*earlier, last.model_copy(update={"ended": ended, "reason": reason}))
        return self._save(self.manifest.model_copy(update={"launches": launches}))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the one driver of the study; StudyError when another has it. The system frees it on any death."""
        lock = FileLock(self.folder / "driver.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            holder = self.driver() or {}
            raise StudyError(
                f"study {self.name!r} is being run by process {holder.get('pid', '?')} on "
                f"{holder.get('host', 'another host')}; wait for it, or end that process"
            ) from None
        except OSError as problem:
            raise StudyError(f"cannot lock the study folder {self.folder}: {problem.strerror}") from None
        try:
            write_json(self.folder / DRIVER, driver_facts())
            yield
        finally:
            (self.folder / DRIVER).unlink(missing_ok=True)
            lock.release()

    def driver(self) -> dict[str, Any] | None:
        """`driver_facts` of the driver that holds the lock, or that was killed while it did; None otherwise."""
        try:
            return dict(json.loads((self.folder / DRIVER).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return None

    def _save(self, manifest: StudyManifest) -> StudyManifest:
        write_json(self.folder / MANIFEST, manifest.model_dump(mode="json"))
        self.manifest = manifest
        return manifest


def list_studies(root: Path) -> list[str]:
    """Names of the studies in a study root, sorted."""
    return sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}")) if root.is_dir() else []


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file at once, so that a reader or a crash never meets half of it."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    # the manifest may hold the password of a database URL
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(staged, path)


def _read_manifest(path: Path) -> StudyManifest:
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text).get("format_version")
        if version != FORMAT_VERSION:
            raise StudyError(f"{path} has format_version {version!r}, this sctune reads {FORMAT_VERSION}; update it")
        return StudyManifest.model_validate_json(text)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StudyError(f"{path} is damaged: {place}: {first['msg']}") from None
    except (OSError, ValueError, AttributeError) as problem:
        raise StudyError(f"{path} cannot be read: {problem}") from None
