"""The driver's side: what nodes ask for is packed once and sent, in a thread of its own, while trials run.

Nothing is packed before a node asks, so that a cluster whose nodes have everything costs nothing, and a node that
comes late is served like the first.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from sctune.data.decode import Decoding
from sctune.data.digests import file_digest
from sctune.data.images import ImageCache, set_key
from sctune.data.published import splits_document
from sctune.data.split import Split
from sctune.errors import PlaceError, SctuneError
from sctune.paths import cache_folder
from sctune.search.plan.plan import weights_files
from sctune.search.space.definition import Space
from sctune.search.study.content import task_digests
from sctune.search.study.options import ALWAYS, NEVER
from sctune.search.study.published import Notes
from sctune.search.study.study import Study
from sctune.trial.published.carriers import Carrier, ObjectCarrier, StorageCarrier
from sctune.trial.published.parcel import Parcel
from sctune.trial.published.requests import Request, answer, asked, forget, forget_all, refuse
from sctune.trial.published.taking import IMAGES, PARCEL, SPLITS, WEIGHTS, Published
from sctune.trial.storage import reason

LOOK_S = 0.5
LEAVE_S = 2.0
REFUSED_S = 30.0
"""Seconds after which somebody who asks again is looked after again."""

_log = logging.getLogger(__name__)


@dataclass
class Publisher:
    """Serves the nodes of a launch. As a context it listens in a thread of its own.

    key: the launch's own; splits: all that a trial of it may ask for; weights: backbone -> file. say: prints a line for
    people, from any thread.
    """

    key: str
    carrier: Carrier
    splits: Mapping[str, Split]
    weights: Mapping[str, Path]
    skip_corrupt: bool
    say: Callable[[str], None]
    notes: Notes | None = None
    _refused: dict[tuple[str, int], float] = field(default_factory=dict, init=False)
    _hosts: set[str] = field(default_factory=set, init=False)
    _ended: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        contents = task_digests(self.splits)
        self._document = splits_document(self.splits.values(), [contents[name] for name in self.splits])
        self._by_digest = {split.digest: (split, contents[name]) for name, split in self.splits.items()}

    def __enter__(self) -> Publisher:
        self._thread = threading.Thread(target=self._listen, daemon=True, name="sctune-publish")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            # a packing that has begun ends with the process
            self._thread.join(LEAVE_S)

    def _listen(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                self.serve()
            except Exception as problem:  # the cluster is away: nodes ask until they are answered
                _log.warning("nodes could not be asked what they need: %s", reason(problem))
        try:
            forget_all(self.key)
        except Exception as problem:  # a few small keys stay in a cluster that is away
            _log.info("%s", reason(problem))

    def serve(self) -> None:
        """Answer all that wait."""
        for which, since in list(self._refused.items()):
            if time.monotonic() - since > REFUSED_S:
                forget(self.key, *which)
                del self._refused[which]
        for request in asked(self.key):
            if self._ended.is_set():
                return
            self._greet(request)
            try:
                answer(self.key, request, self._served(request))
            except (SctuneError, OSError) as problem:
                self._refuse(request, problem)
            except Exception as problem:  # the node that waits must hear of it
                _log.exception("what a node asked for was not published")
                self._refuse(request, problem)

    def _refuse(self, request: Request, problem: Exception) -> None:
        line = f"cannot publish {_kind(request)} for the nodes: {reason(problem)}"
        _log.warning("%s", line)
        self.say(line)
        refuse(self.key, request, problem)
        self._refused[request.name, request.turn] = time.monotonic()

    def _greet(self, request: Request) -> None:
        host = str(request.wanted.get("host", "a node"))
        if host not in self._hosts:
            self._hosts.add(host)
            self._tell(f"node {host} takes images or weights from this driver")

    def _served(self, request: Request) -> dict[str, Any]:
        kind, anew = _kind(request), request.turn > 1
        if anew:
            _log.warning("%s that were published are damaged, and are published again", kind)
        started = time.monotonic()
        with self._opened(kind, request.wanted) as (stream, name, about):
            parcel, there = self.carrier.send(stream, name, about, anew)
        self._note(request, parcel)
        size = f"{parcel.nbytes / 2**20:.1f} MiB, {parcel.stored_bytes / 2**20:.1f} MiB packed"
        how = "there already" if there else f"published in {time.monotonic() - started:.1f} s"
        if kind != SPLITS:
            self._tell(f"{kind} for the nodes: {size}, {how}, through {self.carrier.where}")
        return {PARCEL: parcel.model_dump_json(), **self.carrier.address(parcel)}

    def _note(self, request: Request, parcel: Parcel) -> None:
        if self.notes is None:
            return
        if _kind(request) == SPLITS:
            self.notes.splits(parcel.name)
        elif _kind(request) == IMAGES:
            self.notes.images(request.name.partition("-")[2], parcel.name)

    @contextmanager
    def _opened(self, kind: str, wanted: Mapping[str, Any]) -> Iterator[tuple[BinaryIO, str, dict[str, Any]]]:
        """A file to be published, its SHA-256, and what goes with it."""
        if kind == SPLITS:
            yield io.BytesIO(self._document), sha256(self._document).hexdigest(), {}
            return
        if kind == WEIGHTS:
            path = self.weights[str(wanted["backbone"])]
            about: dict[str, Any] = {"file": path.name}
        elif kind == IMAGES:
            path, about = self._images(str(wanted["split"]), Decoding(**wanted["decoding"]))
            # sets of earlier versions have none
            about.setdefault("sha256", file_digest(path))
        else:
            raise PlaceError(f"nobody publishes {kind!r}")
        # an open file stays whole where its cache entry is removed meanwhile
        with path.open("rb") as stream:
            yield stream, about.get("sha256") or file_digest(path), about

    def _images(self, digest: str, decoding: Decoding) -> tuple[Path, dict[str, Any]]:
        """The decoded development images of a split, from this machine's cache; decoded first where they are new."""
        split, content = self._by_digest[digest]
        cache = ImageCache(cache_folder())
        paths = [file.path for file in split.development]
        cache.array(split.root, paths, decoding, self.skip_corrupt, content)
        return cache.stored(set_key(content, decoding))

    def _tell(self, line: str) -> None:
        _log.info("%s", line)
        self.say(line)


@contextmanager
def publishing(
    study: Study, space: Space, splits: Mapping[str, Split], on_cluster: bool, say: Callable[[str], None]
) -> Iterator[Published | None]:
    """While inside, nodes get what they lack; None where nothing is published.

    splits: of all that will be trained, by any name. on_cluster: whether trials may run on other machines than this;
    where this one has no images itself, all trials get what was published.
    """
    manifest = study.manifest
    lacking = any(split.content is not None for split in splits.values())
    if not lacking and (manifest.publish == NEVER or not on_cluster):
        yield None
        return
    key = f"sctune-publish:{manifest.study_id}:{len(manifest.launches)}"
    carrier: Carrier
    if through_storage(study):
        carrier = storage = StorageCarrier(manifest.storage_path)
        notes = Notes(storage, manifest.study_id)
    else:
        carrier, notes = ObjectCarrier(), None
    skip = manifest.trial_config().data.skip_corrupt
    with Publisher(key, carrier, splits, weights_files(space), skip, say, notes):
        yield Published(key=key, always=manifest.publish == ALWAYS)


def through_storage(study: Study) -> bool:
    """Whether a study publishes through its storage: where that was named, unless Ray's store was asked for."""
    manifest = study.manifest
    if manifest.publish_through == "auto":
        return manifest.storage_path != str(study.folder)
    return manifest.publish_through == "storage"


def _kind(request: Request) -> str:
    return request.name.partition("-")[0]
