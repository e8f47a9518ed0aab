"""The node's side: splits, images and weights from the driver, taken once by each machine and verified.

All processes of a machine share its cache folder, and one of them fetches at a time. What is there is not asked for.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from sctune.data.decode import Decoding
from sctune.data.images import ImageCache, set_key
from sctune.data.published import read_splits
from sctune.data.split import Split
from sctune.errors import PlaceError
from sctune.files import file_sha256, waited_for, whole_file
from sctune.trial.published.carriers import fetcher
from sctune.trial.published.parcel import BrokenParcelError, Parcel, parts_of, read_parcel, unpack
from sctune.trial.published.requests import Request, ask

SPLITS, IMAGES, WEIGHTS = "splits", "images", "weights"
PARCEL = "parcel"
TURNS = 3
"""Times that something is asked for before a node gives it up as broken."""

Pause = Callable[[], None]


class Published(BaseModel):
    """How a node gets what the driver publishes. key: the launch's own, under which it asks.

    always: what is on the node itself is not looked at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    always: bool = False


class Taking:
    """Takes what is published into this machine's cache folder.

    pause: called while something is waited for; may raise. Methods raise PlaceError where it cannot be had here, and
    StorageError where the storage is away.
    """

    def __init__(self, published: Published, cache: Path, pause: Pause = lambda: None) -> None:
        self._published, self._cache, self.pause = published, cache, pause
        self._splits: dict[str, Split] = {}

    def split(self, digest: str) -> Split:
        """The split of this digest; its images need not be here."""
        if digest not in self._splits:
            documents: list[bytes] = []

            def read(parcel: Parcel, address: Mapping[str, Any]) -> None:
                documents.append(b"".join(parts_of(parcel, fetcher(parcel, address))))

            self._take(f"{SPLITS}-{digest}", {"split": digest}, read)
            self._splits |= read_splits(documents[-1])
        return self._splits[digest]

    def images(self, split: Split, decoding: Decoding) -> None:
        """See that the cache has the decoded development images of a published split."""
        assert split.content is not None
        key = set_key(split.content, decoding)

        def fetch(target: Path) -> dict[str, Any]:
            wanted = {"split": split.digest, "decoding": asdict(decoding)}
            return self._take(f"{IMAGES}-{key}", wanted, lambda parcel, address: self._unpack(parcel, address, target))

        count = len({file.path for file in split.development})
        ImageCache(self._cache).adopt(key, count, decoding.size, fetch, self.pause)

    def weights(self, backbone: str, digest: str) -> Path:
        """The file of a backbone's weights, of this SHA-256."""
        folder = self._cache / WEIGHTS
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
            with waited_for(FileLock(folder / "locks" / f"{digest}.lock"), self.pause):
                for held in folder.glob(f"{digest}.*"):
                    if file_sha256(held) == digest:
                        return held
                return self._fetch_weights(folder, backbone, digest)
        except OSError as problem:
            raise PlaceError(f"cannot keep weights in {folder}: {problem.strerror or problem}") from None

    def _fetch_weights(self, folder: Path, backbone: str, digest: str) -> Path:
        places: list[Path] = []

        def keep(parcel: Parcel, address: Mapping[str, Any]) -> None:
            # its reader goes by the suffix
            suffix = PurePath(str(parcel.about.get("file", ""))).suffix or ".pth"
            places.append(folder / f"{digest}{suffix}")
            with whole_file(places[-1]) as staged:
                self._unpack(parcel, address, staged)

        self._take(f"{WEIGHTS}-{digest}", {"backbone": backbone}, keep)
        return places[-1]

    def _unpack(self, parcel: Parcel, address: Mapping[str, Any], target: Path) -> None:
        unpack(parcel, fetcher(parcel, address), target, self.pause, self._cache)

    def _take(
        self, name: str, wanted: Mapping[str, Any], use: Callable[[Parcel, Mapping[str, Any]], None]
    ) -> dict[str, Any]:
        """What goes with a parcel, after `use` had it; asked for again where it is broken."""
        told = {**wanted, "host": socket.gethostname()}
        problem: BrokenParcelError | None = None
        for turn in range(1, TURNS + 1):
            answer = ask(self._published.key, Request(name, turn, told), self.pause)
            try:
                parcel = read_parcel(answer[PARCEL])
                use(parcel, answer)
                return dict(parcel.about)
            except BrokenParcelError as found:
                problem = found
        raise PlaceError(f"what the driver published of {name[:40]} is broken, {TURNS} times over: {problem}")
