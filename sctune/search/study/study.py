"""A study on disk: its folder with the manifest (what was asked for), its record (what happened) and its lock."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from sctune.errors import StudyError, nearest
from sctune.files import whole_file
from sctune.metrics.objective import Objective
from sctune.search.study.database import MANIFEST_ATTR, RETRY_S, read_attrs, storage_url, stored_manifests, write_attrs
from sctune.search.study.lock import DatabaseLock, database_lock, file_lock, now, running_error, watching
from sctune.search.study.manifest import (
    CardNeed,
    Launch,
    LittleGain,
    ResourceSpec,
    StudyManifest,
    manifest_of,
    read_manifest,
)
from sctune.search.study.process import driver_facts
from sctune.search.study.record import Record
from sctune.urls import STORAGE_VARIABLE, chosen, without_secrets

MANIFEST = "study.json"
DRIVER = "driver.json"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")


def valid_name(name: str) -> str:
    """The name itself; StudyError if it could leave the study root or is no plain file name."""
    if not _NAME.fullmatch(name):
        raise StudyError(
            f"study name {name!r}: use letters, digits, '.', '_' and '-', no leading '.', at most 80 characters"
        )
    return name


class Study:
    """A study in `root/name`; made by `create` or `open`.

    With a database record the manifest lies there, for machines that share nothing else, and the file in the folder is
    a copy. lost: why this driver may not write any more, when another one got the study. launched: it runs a launch.
    """

    def __init__(self, folder: Path, manifest: StudyManifest, storage: str | None = None) -> None:
        """storage: bare URL of the database where this machine knows it by another one than the manifest's."""
        self.folder = folder
        self.manifest = manifest
        self.storage = storage or manifest.storage_url
        self.lost: str | None = None
        self._fencing: int | None = None
        self.launched = False
        self._saving = threading.RLock()

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
        made = False
        try:
            record = Record(study.record_url, manifest.name, create=True, direction=study.objective.direction)
            made = True
            record.close()
            study._save(manifest)
        except BaseException:
            # nothing half-written: the name stays free
            if made:
                with suppress(StudyError):
                    study.record.delete()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return study

    @classmethod
    def open(cls, root: Path, name: str, storage: str | None = None) -> Study:
        """An existing study; storage: URL of its record where no folder of it is here (or SCTUNE_STORAGE says it).

        Writes nothing. Raises StudyError with the nearest name when there is none, or its manifest cannot be read.
        """
        path = root / valid_name(name) / MANIFEST
        given = None if storage is None else storage_url(storage)
        if path.is_file():
            manifest = read_manifest(path)
            if manifest.storage_url is None and given is not None:
                raise StudyError(f"study {name!r} in {root} keeps its record in its folder; leave out --storage")
            study = cls(path.parent, manifest, given)
            study._read_again()
            return study
        variable = chosen(None, STORAGE_VARIABLE)
        given = given or (None if variable is None else storage_url(variable, STORAGE_VARIABLE))
        if given is None:
            raise StudyError(
                f"no study {name!r} in {root}; {nearest(name, list_studies(root))}; one of another machine is found by "
                "the --storage that it was begun with"
            )
        found = stored_manifests(given)
        if name not in found:
            raise StudyError(f"no study {name!r} in {root} or in {without_secrets(given)}; {nearest(name, found)}")
        manifest = manifest_of(json.dumps(found[name]), f"the manifest of {name} in the database")
        if manifest.name != name:
            raise StudyError(f"the record at {without_secrets(given)} holds {manifest.name!r} under the name {name!r}")
        return cls(path.parent, manifest, given)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def objective(self) -> Objective:
        """What its trials are compared by."""
        return self.manifest.build_objective()

    @property
    def record_url(self) -> str:
        """Bare: the password joins it when a connection is opened."""
        return self.storage or f"sqlite:///{self.folder.resolve() / 'record.db'}"

    @property
    def is_here(self) -> bool:
        """Whether the study has its folder on this machine."""
        return (self.folder / MANIFEST).is_file()

    @property
    def taken(self) -> bool:
        """Whether another driver has the study by now, as the lock or the record found out."""
        return self.lost is not None or ("record" in self.__dict__ and self.record.fenced)

    @cached_property
    def record(self) -> Record:
        """Opened on first use; close it when done."""
        return Record(self.record_url, self.name, fencing=self._fencing)

    def with_more_trials(self, more: int) -> StudyManifest:
        """A larger number of trials on resume: so many more than there are where the study ended by itself, else than
        were asked for. All of them are run.
        """
        ended = self.manifest.little_gain
        trials = more + (self.manifest.trials if ended is None else ended.after)
        return self._change({"trials": trials, "sure_trials": trials})

    def with_time_budget(self, seconds: float | None) -> StudyManifest:
        """Set the time of all launches together; None: no limit."""
        return self._change({"time_budget_s": seconds})

    def with_resources(self, resources: ResourceSpec) -> StudyManifest:
        """Set what a trial gets from now on, and what is known of its needs."""
        return self._change({"resources": resources})

    def learn_need(self, need: CardNeed) -> None:
        """Keep what a trial has taught of its class; a database that is away lacks it, and it is measured again."""
        with self._saving, suppress(StudyError, OSError):
            own = self.manifest.resources
            self._change({"resources": own.model_copy(update={"needs": (*own.needs, need)})}, limit_s=0)

    def with_places(self, storage_path: str, tracking_uri: str) -> StudyManifest:
        """Set where checkpoints and runs are kept from now on."""
        return self._change({"storage_path": storage_path, "tracking_uri": tracking_uri})

    def with_max_disk(self, max_disk: int) -> StudyManifest:
        """Set the limit of the study's files in bytes."""
        return self._change({"max_disk": max_disk})

    def with_share(self, share: float) -> StudyManifest:
        """Set its weight on a cluster; 0: it does not share one."""
        return self._change({"resources": self.manifest.resources.model_copy(update={"share": share})})

    def with_notes(self, notes: str, owner: str | None = None) -> StudyManifest:
        """Replace the remark on it, and its owner where one is given; the caller holds the lock."""
        return self._change({"notes": notes} | ({} if owner is None else {"owner": owner}))

    def add_launch(self, started: str, left_out: tuple[str, ...] = ()) -> StudyManifest:
        self.launched = True
        launch = Launch(started=started, seen=started, host=socket.gethostname(), left_out=left_out)
        return self._change({"launches": (*self.manifest.launches, launch)})

    def leave_out(self, line: str) -> None:
        """Note with the latest launch that a node gets no trials any more; a database that is away lacks the note."""
        with self._saving, suppress(StudyError, OSError):
            self._change_launch({"left_out": (*self.manifest.launches[-1].left_out, line)}, limit_s=0)

    def end_launch(self, ended: str, reason: str, little_gain: LittleGain | None = None) -> StudyManifest:
        """Close the latest launch."""
        self.launched = False
        return self._change_launch({"ended": ended, "reason": reason, "little_gain": little_gain})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the one driver of the study; StudyError when another has it. The system frees it on any death.

        The manifest is read again under it, and the folder made where the study comes from another machine.
        """
        with ExitStack() as held:
            held.enter_context(self._own_folder())
            held.enter_context(
                file_lock(self.folder / "driver.lock", lambda: running_error(self.name, self.driver() or {}))
            )
            holder = None
            if self.storage is not None:
                holder = held.enter_context(database_lock(self.storage, self.name, self.manifest.study_id))
            self._fence(holder)
            # the driver that held the lock a moment ago may have written the manifest
            self._read_again()
            write_json(self.folder / MANIFEST, self.manifest.model_dump(mode="json"))
            write_json(self.folder / DRIVER, driver_facts())
            held.callback((self.folder / DRIVER).unlink, missing_ok=True)
            held.enter_context(watching(holder, self._beat, self._lose))
            yield

    @contextmanager
    def _own_folder(self) -> Iterator[None]:
        """Made where it is missing; a study that was refused leaves nothing behind."""
        made = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise StudyError(f"cannot write the study folder {self.folder}: {problem.strerror}") from None
        try:
            yield
        finally:
            if made and not self.is_here:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _fence(self, holder: DatabaseLock | None) -> None:
        """The record takes writes of the lock's holder only, from now on."""
        if holder is None:
            return
        self._fencing = holder.fencing
        opened = self.__dict__.pop("record", None)
        if opened is not None:
            opened.close()

    def driver(self) -> dict[str, Any] | None:
        """`driver_facts` of the driver that holds the lock, or that was killed while it did; None otherwise."""
        try:
            return dict(json.loads((self.folder / DRIVER).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return None

    def _beat(self) -> None:
        """A sign of life of the running launch; one that does not arrive does no harm."""
        with self._saving, suppress(StudyError, OSError):
            if self.launched:
                self._change_launch({"seen": now()}, 0.0)

    def _lose(self, reason: str) -> None:
        """Another driver has the study: write nothing more of it, and stop as at a signal, which can be resumed."""
        self.lost = reason
        print(f"sctune: {reason}; this one stops", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    def _read_again(self) -> None:
        """The manifest as it stands now, from the database where it is kept there."""
        if self.storage is None:
            if self.is_here:
                self.manifest = read_manifest(self.folder / MANIFEST)
            return
        stored = read_attrs(self.storage, self.name).get(MANIFEST_ATTR)
        if stored is None:  # begun by an sctune that kept it in the folder only
            return
        manifest = manifest_of(json.dumps(stored), f"the manifest of {self.name} in the database")
        if manifest.study_id != self.manifest.study_id:
            raise StudyError(
                f"the record at {without_secrets(self.storage)} holds another study of the name {self.name!r} than "
                f"{self.folder}; give the --storage that this one was begun with"
            )
        self.manifest = manifest

    def _change_launch(self, changes: Mapping[str, Any], limit_s: float = RETRY_S) -> StudyManifest:
        with self._saving:
            *earlier, last = self.manifest.launches
            return self._change({"launches": (*earlier, last.model_copy(update=changes))}, limit_s)

    def _change(self, changes: Mapping[str, Any], limit_s: float = RETRY_S) -> StudyManifest:
        with self._saving:
            return self._save(self.manifest.model_copy(update=changes), limit_s)

    def _save(self, manifest: StudyManifest, limit_s: float = RETRY_S) -> StudyManifest:
        if self.taken:
            return self.manifest
        content = manifest.model_dump(mode="json")
        if self.storage is not None:
            write_attrs(self.storage, self.name, {MANIFEST_ATTR: content}, limit_s)
        write_json(self.folder / MANIFEST, content)
        self.manifest = manifest
        return manifest


def list_studies(root: Path) -> list[str]:
    """Names of the studies in a study root, sorted."""
    return sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}")) if root.is_dir() else []


def local_manifests(root: Path) -> list[StudyManifest]:
    """Manifests of the studies in a study root; the file's copy where a database does not answer."""
    manifests = []
    for name in list_studies(root):
        try:
            manifests.append(Study.open(root, name).manifest)
        except StudyError:
            manifests.append(read_manifest(root / name / MANIFEST))
    return manifests


def list_stored(url: str) -> list[StudyManifest]:
    """Manifests of the studies in a database, by name; StudyError where one cannot be read."""
    found = stored_manifests(storage_url(url))
    return [manifest_of(json.dumps(tree), f"the manifest of {name} in the database") for name, tree in found.items()]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file at once, so that a reader or a crash never meets half of it."""
    # a link that somebody put there must not lead the write out of the folder
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with whole_file(path) as staged, os.fdopen(os.open(staged, flags, 0o600), "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())
