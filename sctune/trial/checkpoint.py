"""Pickle-free, atomic checkpoints of a whole trial, on a local path or an object store.

A trial's folder is `<storage>/trials/<number>/`; a checkpoint in it is `epoch-<e>-attempt-<a>-launch-<l>/`, one
safetensors file per task and `checkpoint.json`, written last: a folder without it is not a checkpoint. The attempt
keeps a worker that was cut off from writing over its successor, the launch that of a driver that was cut off, whose
trials may have the same numbers. Folders of earlier versions have no launch, and count as of launch 0.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from pyarrow import fs
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sctune.config import Task
from sctune.errors import CheckpointError, NonFiniteError, StorageError
from sctune.report import EpochReport
from sctune.trial.storage import answering, open_storage, reason

FORMAT = 1
MANIFEST = "checkpoint.json"

KEPT = 2
"""Checkpoints that a trial keeps: the latest, and one in reserve."""

_log = logging.getLogger(__name__)

TaskState = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""Tensors by name, and JSON values about them."""


@dataclass(frozen=True)
class CheckpointName:
    """Where a checkpoint lies: `folder` is the name inside the trial's folder; launch: from 1, 0 for an old one."""

    epoch: int
    attempt: int
    launch: int = 0

    @property
    def folder(self) -> str:
        launch = f"-launch-{self.launch:02d}" if self.launch else ""
        return f"epoch-{self.epoch:04d}-attempt-{self.attempt:02d}{launch}"

    @property
    def writer(self) -> tuple[int, int]:
        """Who wrote it; a later one is greater, whichever driver started it."""
        return self.launch, self.attempt


class _Strict(BaseModel):
    # no other keys: a damaged name of a digest must not pass for a checkpoint of an earlier version
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _TaskFile(_Strict):
    file: str
    meta: dict[str, Any]
    sha256: str | None = None


class _Manifest(_Strict):
    """checkpoint.json; sha256: over the rest of it."""

    format_version: Literal[1]
    epoch: int = Field(ge=0)
    attempt: int = Field(ge=0)
    launch: int = Field(0, ge=0)
    tasks: dict[str, _TaskFile]
    report: dict[str, Any] | None = None
    earlier: list[dict[str, Any]] = []
    sha256: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """tasks: task key -> tensors and their JSON values; report: EpochReport.to_dict of its epoch, where it is known.

    earlier: those of the epochs before it; in checkpoints of earlier versions without scores.
    """

    tasks: dict[str, tuple[dict[str, Tensor], dict[str, Any]]]
    report: dict[str, Any] | None
    earlier: tuple[dict[str, Any], ...] = ()


class TrialStore:
    """Checkpoints of one trial under a storage URI (absolute path, file:// or s3://)."""

    def __init__(self, storage: str, number: int) -> None:
        self.storage = storage
        self.system, root = open_storage(storage)
        self.root = f"{root}/trials/{number:05d}"

    def save(
        self,
        epoch: int,
        attempt: int,
        tasks: Mapping[str, TaskState],
        report: Mapping[str, Any] | None = None,
        last: bool = False,
        earlier: Sequence[Mapping[str, Any]] = (),
        launch: int = 0,
    ) -> CheckpointName:
        """Write a checkpoint whole or not at all; the one before it stays in reserve, older ones are removed.

        last: the trial is over, and needs no reserve. report: what was told of this epoch (EpochReport.to_dict), for
        a driver that died before it arrived, or whose database was away; earlier: of the epochs before it. launch:
        number of the driver's launch, from 1.
        """
        name = CheckpointName(epoch, attempt, launch)
        final = f"{self.root}/{name.folder}"
        local = isinstance(self.system, fs.LocalFileSystem)
        # a rename makes a local folder appear whole; on an object store the manifest comes last
        target = f"{self.root}/.{name.folder}.{uuid.uuid4().hex[:8]}" if local else final
        try:
            self._write_all(target, name, tasks, {"report": report, "earlier": list(earlier)})
        except BaseException:
            # a full disk must not be filled further by what is left over
            self._remove(target)
            raise
        if local:
            self._remove(final)
            self.system.move(target, final)
        try:
            self._trim(name, KEPT if not last else 1)
        except (OSError, StorageError) as problem:
            # the checkpoint is there; the next one, or the end of the trial, removes what is too much
            _log.warning("older checkpoints in %s were not removed: %s", self.root, reason(problem))
        return name

    def _write_all(
        self,
        target: str,
        name: CheckpointName,
        tasks: Mapping[str, TaskState],
        told: Mapping[str, Any],
    ) -> None:
        self.system.create_dir(target, recursive=True)
        files = {}
        for index, (key, (tensors, meta)) in enumerate(tasks.items()):
            content = save_tensors(dict(tensors))
            files[key] = {"file": f"task-{index}.safetensors", "sha256": _sha256(content), "meta": meta}
            self._write(f"{target}/task-{index}.safetensors", content)
        manifest = {
            "format_version": FORMAT,
            "epoch": name.epoch,
            "attempt": name.attempt,
            "launch": name.launch,
            "tasks": files,
            **told,
        }
        self._write(f"{target}/{MANIFEST}", json.dumps(manifest | {"sha256": _manifest_digest(manifest)}).encode())

    def _trim(self, latest: CheckpointName, kept: int) -> None:
        """Remove older checkpoints, and what earlier attempts left half-written."""
        for older in self.names()[:-kept]:
            if older.writer <= latest.writer:
                self._remove(f"{self.root}/{older.folder}")
        for path, writer in self._staged():
            if writer < latest.writer:
                self._remove(path)

    def _staged(self) -> list[tuple[str, tuple[int, int]]]:
        """Path and writer of each checkpoint that is being written, or whose writer was killed."""
        found = []
        for info in self.system.get_file_info(fs.FileSelector(self.root, allow_not_found=True)):
            match = re.fullmatch(rf"\.{_FOLDER}\.\w+", info.base_name)
            if match:
                found.append((info.path, _name(match).writer))
        return found

    def names(self) -> list[CheckpointName]:
        """Complete checkpoints, the latest epoch last, of equals the latest writer's.

        Raises StorageError where they cannot be listed.
        """
        found = []
        with answering(self.storage):
            for info in self.system.get_file_info(fs.FileSelector(self.root, allow_not_found=True)):
                match = re.fullmatch(_FOLDER, info.base_name)
                if match and self.system.get_file_info(f"{info.path}/{MANIFEST}").type == fs.FileType.File:
                    found.append(_name(match))
        return sorted(found, key=lambda name: (name.epoch, name.writer))

    def load(self, name: CheckpointName, only: str | None = None) -> Checkpoint:
        """A checkpoint; raises CheckpointError for a damaged one or one of a newer sctune.

        only: key of the task that is read, None: all of them. StorageError where an object store does not answer: the
        checkpoint may be whole.
        """
        folder = f"{self.root}/{name.folder}"
        try:
            manifest = _read_manifest(self._read(f"{folder}/{MANIFEST}"))
            own = CheckpointName(manifest.epoch, manifest.attempt, manifest.launch)
            if own != name:
                raise ValueError(f"it is of {own.folder}")
            rows = {key: row for key, row in manifest.tasks.items() if only in (None, key)}
            tasks = {key: (self._tensors(folder, row), row.meta) for key, row in rows.items()}
            return Checkpoint(tasks, manifest.report, tuple(manifest.earlier))
        except CheckpointError as problem:
            raise CheckpointError(f"{folder}: {problem}") from None
        except OSError as problem:
            away = not isinstance(self.system, fs.LocalFileSystem) and not isinstance(problem, FileNotFoundError)
            kind: type[CheckpointError] = StorageError if away else CheckpointError
            raise kind(f"cannot read the checkpoint {folder}: {reason(problem)}") from None
        except (SafetensorError, ValueError, NonFiniteError) as problem:
            why = " ".join(str(problem).split())[:300]
            raise CheckpointError(f"cannot read the checkpoint {folder}: {why}") from None

    def load_latest(self, first_launch: int = 0, only: str | None = None) -> Checkpoint | None:
        """The latest checkpoint that can be read, or None where there is none: a damaged one costs its epochs only.

        first_launch: the one that began the trial; what an earlier launch wrote is of a namesake. only: as `load` has
        it, so that a model of one of many tasks does not cost the memory of all. Raises StorageError where the storage
        does not answer.
        """
        for name in reversed([name for name in self.names() if name.launch >= first_launch]):
            try:
                return self.load(name, only)
            except StorageError:
                raise
            except CheckpointError as problem:
                _log.warning("%s; going on from an earlier one", problem)
        return None

    def clear(self) -> None:
        """Remove all checkpoints of the trial."""
        self._remove(self.root)

    def clear_before(self, launch: int) -> None:
        """Remove what launches up to this one wrote; a later driver's worker may use the folder meanwhile."""
        complete = [(f"{self.root}/{name.folder}", name.writer) for name in self.names()]
        for path, writer in (*complete, *self._staged()):
            if writer[0] <= launch:
                self._remove(path)

    def _tensors(self, folder: str, row: _TaskFile) -> dict[str, Tensor]:
        content = self._read(f"{folder}/{_inside(row.file)}")
        if row.sha256 not in (None, _sha256(content)):
            raise ValueError(f"{row.file} is not what was written")
        return load_tensors(content)

    def _write(self, path: str, content: bytes) -> None:
        if isinstance(self.system, fs.LocalFileSystem):
            with open(path, "wb") as file:
                file.write(content)
                file.flush()
                # or a power cut could leave a whole folder of empty files
                os.fsync(file.fileno())
            return
        with self.system.open_output_stream(path) as stream:
            stream.write(content)

    def _read(self, path: str) -> bytes:
        with self.system.open_input_stream(path) as stream:
            return bytes(stream.read())

    def _remove(self, folder: str) -> None:
        if self.system.get_file_info(folder).type == fs.FileType.Directory:
            self.system.delete_dir(folder)


def check_trained(saved: Checkpoint, number: int, task: Task) -> None:
    """Raises CheckpointError where a trial, whose tasks are trained one after another, has not come to this one yet."""
    if task.key not in saved.tasks:
        raise CheckpointError(
            f"trial {number} has not been trained on task {task.key} yet: its replicates come one after another; take "
            "a task of an earlier seed, or a full run"
        )


_FOLDER = r"epoch-([0-9]{4,9})-attempt-([0-9]{2,9})(?:-launch-([0-9]{2,9}))?"


def _name(match: re.Match[str]) -> CheckpointName:
    return CheckpointName(int(match[1]), int(match[2]), int(match[3] or 0))


def _read_manifest(content: bytes) -> _Manifest:
    """Raises ValueError for a damaged one, CheckpointError for one of a newer sctune."""
    try:
        tree = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if type(version) is int and version > FORMAT:
        raise CheckpointError(f"a checkpoint has format {version}, this sctune reads up to {FORMAT}; update sctune")
    manifest = _Manifest.model_validate(tree)
    # checkpoints of earlier versions have no digests
    if manifest.sha256 is not None and manifest.sha256 != _manifest_digest(tree):
        raise ValueError(f"{MANIFEST} is not what was written")
    if manifest.report is not None and EpochReport.from_dict(manifest.report).epoch != manifest.epoch:
        raise ValueError("its report is of another epoch")
    # one that trains nothing skips epochs of its replicates
    epochs = [0, *(EpochReport.from_dict(row).epoch for row in manifest.earlier)]
    if any(before >= after for before, after in pairwise(epochs)):
        raise ValueError("its earlier reports are not in order")
    return manifest


def _manifest_digest(tree: Mapping[str, Any]) -> str:
    return _sha256(json.dumps({**tree, "sha256": None}, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _inside(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
        raise ValueError(f"file name {name!r} leaves the checkpoint")
    return name
