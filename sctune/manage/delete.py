"""Removing a study: MLflow's runs, checkpoints, record and folder, in an order that can be begun again.

MLflow comes first, since it alone may be away: then nothing has been touched. The manifest, which names all
the places and lies in the folder and in a shared record, goes last, so that a deletion that was cut off is
repeated by the same command.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pyarrow import fs

from sctune.deploy.register import CANDIDATE, registered_name
from sctune.errors import CheckpointError, StudyError, TrackingError
from sctune.search.study.database import NoRecordError, read_attrs
from sctune.search.study.record import Record
from sctune.search.study.study import DRIVER, MANIFEST, Study, valid_name
from sctune.tracking.server import (
    ROLE_TAG,
    STUDY_TAG,
    check_tracking,
    find_experiment,
    mlflow_client,
    run_bounded,
    safe_uri,
    scrub,
)
from sctune.trial.storage import answering, open_storage
from sctune.urls import STORAGE_VARIABLE, chosen

if TYPE_CHECKING:
    from mlflow import MlflowClient

MLFLOW_LIMIT_S = 300.0
TRIALS = "trials"
"""Folder of the checkpoints under a study's storage (see trial/checkpoint.py)."""
Result = TypeVar("Result")
_LOCK_FILES = {"driver.lock", DRIVER}


@dataclass(frozen=True)
class Belongings:
    """What a study has. Sizes in bytes; trials: rows of a record outside the folder, None: it lies in the folder.

    runs: ids of its MLflow runs, versions: of its registered model that go, None: MLflow is left alone.
    kept: lines about what stays, with the reason.
    """

    folder: Path
    folder_bytes: int
    storage: str | None
    storage_bytes: int
    trials: int | None
    runs: tuple[str, ...] | None
    versions: tuple[str, ...]
    kept: tuple[str, ...]

    def lines(self) -> list[str]:
        shown = [f"folder {self.folder} ({_size(self.folder_bytes)})"]
        if self.storage is not None:
            shown.append(f"checkpoints in {safe_uri(self.storage)} ({_size(self.storage_bytes)})")
        if self.trials is not None:
            shown.append(f"{self.trials} trials in the database of the record")
        if self.runs is not None:
            shown.append(f"{len(self.runs)} MLflow runs, {len(self.versions)} versions of its registered model")
        return shown

    def to_dict(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "folder_bytes": self.folder_bytes,
            "storage": None if self.storage is None else safe_uri(self.storage),
            "storage_bytes": self.storage_bytes,
            "record_trials": self.trials,
            "mlflow_runs": None if self.runs is None else len(self.runs),
            "model_versions": list(self.versions),
            "kept": list(self.kept),
        }


@contextmanager
def deletion(root: Path, name: str, keep_runs: bool, storage: str | None = None) -> Iterator[Deletion]:
    """Hold a study that nobody runs, to look at what it has and then delete it.

    storage: URL of the record, where no folder of the study is here. Raises StudyError for a missing or running
    study, TrackingError where MLflow is away, and removes nothing then.
    """
    study = Study.open(root, name, storage)
    with study.lock():
        yield Deletion(study, keep_runs)


def finish_leftover(root: Path, name: str, storage: str | None = None) -> bool:
    """Remove what a deletion leaves that was killed in its last moment; gives whether there was such."""
    folder = root / valid_name(name)
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {MANIFEST, *_LOCK_FILES}:
        return False
    if not (folder / MANIFEST).exists() and chosen(storage, STORAGE_VARIABLE):
        return False  # a study of another machine that was looked at from here
    if (folder / MANIFEST).exists():
        url = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("storage_url")
        if url is None:
            return False
        with suppress(NoRecordError):  # its rows are gone: the manifest describes nothing any more
            read_attrs(url, name)
            return False
    shutil.rmtree(folder)
    return True


class Deletion:
    """A study that is held; `belongings` is what goes and what stays."""

    def __init__(self, study: Study, keep_runs: bool) -> None:
        self.study = study
        manifest = study.manifest
        runs: tuple[str, ...] | None = None
        versions: tuple[str, ...] = ()
        kept: tuple[str, ...] = ()
        if not keep_runs:
            check_tracking(manifest.tracking_uri)
            runs, versions, kept = self._in_mlflow(lambda client: _find(client, study))
        outside = Path(manifest.storage_path).resolve() != study.folder.resolve()
        self.belongings = Belongings(
            study.folder,
            _folder_bytes(study.folder),
            manifest.storage_path if outside else None,
            _storage_bytes(manifest.storage_path) if outside else 0,
            _record_trials(study) if study.storage is not None else None,
            runs,
            versions,
            kept,
        )

    def run(self) -> None:
        """Delete; raises StudyError or TrackingError with what is left to do, which the same command does."""
        found = self.belongings
        if found.runs is not None:
            runs, versions = found.runs, found.versions
            self._in_mlflow(lambda client: _delete_runs(client, self.study, runs, versions))
        if found.storage is not None:
            _delete_storage(found.storage)
        _empty_folder(self.study.folder)
        if self.study.storage is not None:
            _delete_rows(self.study)
        _delete_folder(self.study.folder)

    def _in_mlflow(self, work: Callable[[MlflowClient], Result]) -> Result:
        uri = self.study.manifest.tracking_uri
        try:
            return run_bounded(lambda: work(mlflow_client(uri)), MLFLOW_LIMIT_S)
        except Exception as problem:  # whatever MLflow raises
            raise TrackingError(
                f"MLflow at {safe_uri(uri)} refused: {scrub(problem, uri)}; nothing outside MLflow was deleted; "
                "try again, or leave the runs there with --keep-runs"
            ) from None


def _find(client: MlflowClient, study: Study) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Ids of the runs that go, versions that go, and lines about what stays."""
    manifest = study.manifest
    experiment, token = find_experiment(client, manifest.tracking_uri, manifest.study_id), None
    runs: list[str] = []
    parents: list[str] = []
    while True:
        condition = f"tags.`{STUDY_TAG}` = '{manifest.study_id}'"
        page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
        runs += [run.info.run_id for run in page]
        parents += [run.info.run_id for run in page if run.data.tags.get(ROLE_TAG) == "study"]
        token = page.token
        if not token:
            break
    name, kept, versions, needed = registered_name(study.name), [], [], set()
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id not in runs:
            continue  # of an earlier study of this name
        aliases = sorted(set(client.get_model_version(name, version.version).aliases) - {CANDIDATE})
        if aliases:
            kept.append(f"model {name} version {version.version} is {', '.join(aliases)}: it and its run are kept")
            needed.add(version.run_id)
        else:
            versions.append(str(version.version))
    if versions or kept:
        kept.append(f"registered model {name} is kept")
    for parent in parents:
        # what `sctune deploy` registered under the name of the data may serve, or be gone back to
        for version in client.search_model_versions(f"run_id = '{parent}'"):
            if version.name != name:
                kept.append(f"model {version.name} version {version.version} was deployed: it and its run are kept")
                needed.add(parent)
    return tuple(run for run in runs if run not in needed), tuple(versions), tuple(kept)


def _delete_runs(client: MlflowClient, study: Study, runs: tuple[str, ...], versions: tuple[str, ...]) -> None:
    from mlflow.exceptions import MlflowException

    for version in versions:
        client.delete_model_version(registered_name(study.name), version)
    for run in runs:
        try:
            client.delete_run(run)
        except MlflowException as problem:
            if problem.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def _delete_storage(storage: str) -> None:
    """Only what sctune makes there, since a damaged manifest may name any folder; and the folder once it is empty."""
    try:
        system, root = open_storage(storage)
        if system.get_file_info(f"{root}/{TRIALS}").type == fs.FileType.Directory:
            system.delete_dir(f"{root}/{TRIALS}")
        if not system.get_file_info(fs.FileSelector(root, allow_not_found=True)):
            with suppress(FileNotFoundError):
                system.delete_dir(root)
    except (OSError, CheckpointError) as problem:
        raise StudyError(
            f"the checkpoints in {safe_uri(storage)} cannot be deleted: {problem}; make that possible and run the "
            "same command again"
        ) from None


def _delete_rows(study: Study) -> None:
    try:
        record = Record(study.record_url, study.name)
    except NoRecordError:
        return  # an earlier try came this far
    try:
        record.delete()
    finally:
        record.close()


def _empty_folder(folder: Path) -> None:
    """All but the manifest and the lock: until they go the same command can be given again."""
    with _deleting(folder):
        for path in sorted(folder.iterdir()):
            if path.name not in {MANIFEST, *_LOCK_FILES}:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _delete_folder(folder: Path) -> None:
    with _deleting(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


@contextmanager
def _deleting(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise StudyError(
            f"{folder} cannot be deleted: {problem.strerror}; make that possible and run the same command again"
        ) from None


def _record_trials(study: Study) -> int:
    try:
        record = Record(study.record_url, study.name)
    except NoRecordError:
        return 0
    try:
        return len(record.load())
    finally:
        record.close()


def _folder_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _storage_bytes(storage: str) -> int:
    system, root = open_storage(storage)
    with answering(storage):
        found = system.get_file_info(fs.FileSelector(f"{root}/{TRIALS}", allow_not_found=True, recursive=True))
    return sum(info.size or 0 for info in found)


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
