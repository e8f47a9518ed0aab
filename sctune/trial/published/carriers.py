"""The two ways from a driver to its nodes: the study's storage, which all of them see, and Ray's object store."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

import ray
from pyarrow import fs
from ray import cloudpickle

from sctune.errors import PlaceError
from sctune.trial.published.parcel import BrokenParcelError, Parcel, Part, pack, read_parcel
from sctune.trial.storage import answering, open_storage, sibling

FOLDER = ".published"
"""Beside the folders of the studies, which share what they publish."""

DESCRIPTION = "parcel.json"
FETCH_S = 600.0
"""Seconds that a part may take through Ray."""


class Carrier(Protocol):
    """`send` publishes a file, again where `anew`; `address` is what a node needs to fetch it, as JSON values.

    where: in words.
    """

    where: str

    def send(self, stream: BinaryIO, name: str, about: dict[str, Any], anew: bool = False) -> tuple[Parcel, bool]:
        """The parcel, and whether it was there already. stream: the file, whose SHA-256 is `name`."""
        ...

    def address(self, parcel: Parcel) -> dict[str, Any]: ...


class StorageCarrier:
    """Through the study's storage: a folder for each parcel, its description written last.

    storage: URI of the study's checkpoints; uri: of the folder of parcels.
    """

    def __init__(self, storage: str) -> None:
        self.uri = sibling(storage, FOLDER)
        self._system, self._root = open_storage(self.uri)
        self.where = self.uri.partition("?")[0]

    def send(self, stream: BinaryIO, name: str, about: dict[str, Any], anew: bool = False) -> tuple[Parcel, bool]:
        with answering(self.uri):
            held = None if anew else self.find(name)
            if held is not None:
                return held, True
            self._system.create_dir(f"{self._root}/{name}", recursive=True)
            parcel = pack(stream, name, lambda part, content: self._write(f"{name}/{part.name}", content), about)
            self._write(f"{name}/{DESCRIPTION}", parcel.model_dump_json().encode())
        return parcel, False

    def find(self, name: str) -> Parcel | None:
        """A whole parcel; None where there is none. The bytes of its parts are not read."""
        try:
            parcel = read_parcel(_read(self._system, f"{self._root}/{name}/{DESCRIPTION}"))
        except (FileNotFoundError, BrokenParcelError):
            return None
        listed = self._system.get_file_info(fs.FileSelector(f"{self._root}/{name}"))
        sizes = {info.base_name: info.size for info in listed}
        whole = parcel.name == name and all(sizes.get(part.name) == part.nbytes for part in parcel.parts)
        return parcel if whole else None

    def address(self, parcel: Parcel) -> dict[str, Any]:
        return {"storage": self.uri}

    def note(self, study_id: str, content: Mapping[str, Any]) -> None:
        """Keep what a study has published, for a driver on another machine."""
        with answering(self.uri):
            self._system.create_dir(f"{self._root}/studies", recursive=True)
            self._write(f"studies/{study_id}.json", json.dumps(content, sort_keys=True).encode())

    def noted(self, study_id: str) -> Any:
        """What `note` kept, None where there is nothing, or it is no JSON."""
        with answering(self.uri):
            try:
                return json.loads(_read(self._system, f"{self._root}/studies/{study_id}.json"))
            except (FileNotFoundError, ValueError):
                return None

    def _write(self, path: str, content: bytes) -> None:
        """Whole or not at all: an object is, and a local file is renamed."""
        final = f"{self._root}/{path}"
        if not isinstance(self._system, fs.LocalFileSystem):
            with self._system.open_output_stream(final) as stream:
                stream.write(content)
            return
        folder, _, name = final.rpartition("/")
        staged = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
        try:
            with self._system.open_output_stream(staged) as stream:
                stream.write(content)
            self._system.move(staged, final)
        except BaseException:
            if self._system.get_file_info(staged).type == fs.FileType.File:
                self._system.delete_file(staged)
            raise


class ObjectCarrier:
    """Through Ray's object store: an object for each part, kept as long as this driver lives."""

    where = "Ray's object store"

    def __init__(self) -> None:
        self._sent: dict[str, tuple[Parcel, list[Any]]] = {}

    def send(self, stream: BinaryIO, name: str, about: dict[str, Any], anew: bool = False) -> tuple[Parcel, bool]:
        if name in self._sent and not anew:
            return self._sent[name][0], True
        refs: list[Any] = []
        parcel = pack(stream, name, lambda part, content: refs.append(ray.put(content)), about)
        self._sent[name] = parcel, refs
        return parcel, False

    def address(self, parcel: Parcel) -> dict[str, Any]:
        _, refs = self._sent[parcel.name]
        # Ray's own way to hand on references apart from calls; they keep the objects alive
        return {"refs": base64.b64encode(cloudpickle.dumps(refs)).decode()}


def fetcher(parcel: Parcel, address: Mapping[str, Any]) -> Callable[[Part], bytes]:
    """What fetches a part on a node. Calls raise BrokenParcelError for one that is gone, StorageError or PlaceError
    where it cannot be had now."""
    if "storage" in address:
        return storage_fetcher(parcel, str(address["storage"]))
    rows = dict(zip((part.name for part in parcel.parts), _references(address), strict=True))

    def get(part: Part) -> bytes:
        try:
            content: bytes = ray.get(rows[part.name], timeout=FETCH_S)
        except ray.exceptions.ObjectLostError as problem:
            raise BrokenParcelError(f"part {part.name[:12]} was lost: {_line(problem)}") from None
        except ray.exceptions.RayError as problem:
            raise PlaceError(f"the driver's data cannot be had through Ray: {_line(problem)}") from None
        return content

    return get


def storage_fetcher(parcel: Parcel, uri: str) -> Callable[[Part], bytes]:
    """As `fetcher`; uri: of the folder of parcels."""
    system, root = open_storage(uri)

    def read(part: Part) -> bytes:
        with answering(uri):
            try:
                return _read(system, f"{root}/{parcel.name}/{part.name}")
            except FileNotFoundError:
                raise BrokenParcelError(f"part {part.name[:12]} is gone from {uri.partition('?')[0]}") from None

    return read


def _references(address: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = cloudpickle.loads(base64.b64decode(address["refs"]))
    return found


def _read(system: fs.FileSystem, path: str) -> bytes:
    with system.open_input_stream(path) as stream:
        content: bytes = stream.readall()
    return content


def _line(problem: Exception) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)[:300]
