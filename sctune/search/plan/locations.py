"""Where a study lies: its name, its folder, its checkpoints and its record, checked before anything is made."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pyarrow import fs

from sctune.errors import StorageError, StudyError
from sctune.files import check_writable
from sctune.paths import home
from sctune.search.plan.options import SearchOptions
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.study import Study, list_studies, valid_name
from sctune.tracking.choice import resolve_tracking_uri
from sctune.tracking.server import check_tracking, local_database
from sctune.trial.storage import answering, open_storage, probe, reason, with_region

MARK = "storage.json"
"""In the folder of a study's checkpoints: {"format_version", "study_id"}."""


def free_name(options: SearchOptions, root: Path) -> str:
    """The study's name; StudyError where it is taken, or the study root cannot be written to."""
    stem = Path(options.space).stem
    name = valid_name(f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}" if options.name is None else options.name)
    if name.startswith("-"):
        raise StudyError(
            f"--name {name!r}: a leading '-' would be taken for an option by every later command; change it"
        )
    if name in list_studies(root) or (root / name).exists():
        raise StudyError(f"study {name!r} exists in {root}; go on with `sctune resume {name}` or choose another --name")
    check_writable(root, "--study-root", StudyError)
    return name


def storage_uri(given: str | None, folder: Path) -> str:
    """URI or folder of the checkpoints of a study in `folder`; StudyError where it cannot be written to."""
    if given is None:
        return str(folder)
    if "://" in given:
        _refuse_secrets(given)
        return _checked(given, folder.name)
    root = Path(given).expanduser().absolute()
    check_writable(root, "--storage-path", StudyError)
    return str(root / folder.name)


def check_seen(study: Study) -> None:
    """Raises StudyError where the checkpoints or the runs of a study with a database record are not seen from here.

    Its unfinished trials would start anew without a word.
    """
    manifest = study.manifest
    if manifest.storage_url is None:
        return
    path = manifest.storage_path
    if _mark(path) != manifest.study_id:
        raise StudyError(
            f"the checkpoints of study {study.name} are in {path}, which is not seen from here; mount it, or give a "
            "--storage-path that is: its unfinished trials then start anew"
        )
    database = local_database(manifest.tracking_uri)
    if database is not None and not database.is_file():
        raise StudyError(
            f"the runs of study {study.name} are in {database}, which is not seen from here; mount it, or give a "
            "--tracking-uri that is: the study is then shown there"
        )


def mark_storage(manifest: StudyManifest) -> None:
    """Write into the checkpoints' folder whose it is, for a driver on another machine to know it by."""
    if manifest.storage_url is None:
        return
    system, root = open_storage(manifest.storage_path)
    with answering(manifest.storage_path):
        system.create_dir(root, recursive=True)
        with system.open_output_stream(f"{root}/{MARK}") as stream:
            stream.write(json.dumps({"format_version": 1, "study_id": manifest.study_id}).encode())


def move(study: Study, storage_path: str | None, tracking_uri: str | None) -> None:
    """Other places for a study that goes on; None: the place that it has. Raises StudyError or TrackingError."""
    manifest = study.manifest
    path = manifest.storage_path if storage_path is None else storage_uri(storage_path, study.folder)
    uri = manifest.tracking_uri if tracking_uri is None else resolve_tracking_uri(tracking_uri, home())
    if tracking_uri is not None:
        check_tracking(uri)
    if (path, uri) == (manifest.storage_path, manifest.tracking_uri):
        return
    moved = manifest.model_copy(update={"storage_path": path, "tracking_uri": uri})
    if path != manifest.storage_path:
        mark_storage(moved)
    study.with_places(path, uri)


def _mark(path: str) -> str | None:
    """Id of the study whose checkpoints a folder is for, None where it is not seen or not marked.

    Raises StorageError where the storage does not answer.
    """
    system, root = open_storage(path)
    try:
        with answering(path), suppress(FileNotFoundError, NotADirectoryError):
            content = system.open_input_stream(f"{root}/{MARK}").readall()
            return str(json.loads(content)["study_id"])
    except (ValueError, KeyError, TypeError):
        pass
    return None


def _checked(uri: str, name: str) -> str:
    """The URI of a study's folder in a storage that takes files; StudyError for another one. Leaves no file."""
    place, mark, query = uri.partition("?")
    try:
        parent, mark, query = with_region(f"{place.rstrip('/')}{mark}{query}").partition("?")
        system, root = open_storage(f"{parent}{mark}{query}")
        if isinstance(system, fs.LocalFileSystem):
            check_writable(Path(root), "--storage-path", StudyError)
        else:
            probe(system, root)
    except (OSError, StorageError) as problem:
        raise StudyError(
            f"--storage-path {uri}: it takes no file: {reason(problem)}; look at the bucket's name, the credentials "
            "(~/.aws/credentials, AWS_PROFILE) and AWS_ENDPOINT_URL"
        ) from None
    return f"{parent}/{name}{mark}{query}"


def _refuse_secrets(uri: str) -> None:
    """Every worker gets this address, and Ray writes it down; so it must hold no key."""
    scheme, _, rest = uri.partition("://")
    if "@" in rest.partition("/")[0] or re.search(r"[?&](access_key|secret_key|session_token)=", rest):
        raise StudyError(
            f"--storage-path {scheme}://...: no keys in the address, which is passed on to every node; give them by "
            "~/.aws/credentials, AWS_PROFILE or the machine's role"
        )
