"""What a study has published in its storage: noted for a driver on another machine, which may lack the images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sctune.data.images import ImageCache
from sctune.data.published import read_splits
from sctune.data.split import Split
from sctune.errors import ChangedDataError, DataError, SctuneError
from sctune.paths import cache_folder
from sctune.search.study.content import content_digest
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.splits import checked_splits
from sctune.trial.published.carriers import StorageCarrier, storage_fetcher
from sctune.trial.published.parcel import BrokenParcelError, Parcel, parts_of, unpack

FORMAT_VERSION = 1


class Notes:
    """{"format_version", "splits": names of parcels, "images": {name of the set in the cache: name of the parcel}}."""

    def __init__(self, carrier: StorageCarrier, study_id: str) -> None:
        self._carrier, self._study_id = carrier, study_id
        held = carrier.noted(study_id)
        known = isinstance(held, dict) and held.get("format_version") == FORMAT_VERSION
        self._splits: list[str] = list(held["splits"]) if known else []
        self._images: dict[str, str] = dict(held["images"]) if known else {}

    def splits(self, name: str) -> None:
        if name not in self._splits:
            self._splits.append(name)
            self._write()

    def images(self, key: str, name: str) -> None:
        if self._images.get(key) != name:
            self._images[key] = name
            self._write()

    def _write(self) -> None:
        content = {"format_version": FORMAT_VERSION, "splits": self._splits, "images": self._images}
        self._carrier.note(self._study_id, content)


def resumed_splits(manifest: StudyManifest, folder: Path) -> tuple[dict[str, Split], list[str]]:
    """As `checked_splits`, and lines for the user; where the images are not here, from what the study has published.

    Its decoded images are then in this machine's cache. Raises DataError with both reasons where neither is there, and
    ChangedDataError as `checked_splits` does.
    """
    try:
        return checked_splits(manifest, folder), []
    except ChangedDataError:
        raise
    except DataError as problem:
        missing = str(problem)
    try:
        carrier = StorageCarrier(manifest.storage_path)
        splits, sets = _take(manifest, carrier)
    except (SctuneError, OSError) as problem:
        raise DataError(f"{missing}; and the study cannot go on with what it published: {problem}") from None
    return splits, [
        f"the images of {manifest.data.name} are not here: {sets} decoded set(s) of them come from {carrier.where}; "
        "what reads the images themselves (pictures, the registered model, `sctune confirm`) waits for a machine that "
        "has them"
    ]


def _take(manifest: StudyManifest, carrier: StorageCarrier) -> tuple[dict[str, Split], int]:
    noted = carrier.noted(manifest.study_id)
    if not isinstance(noted, dict) or noted.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"there is nothing of it in {carrier.where} (a search publishes there with --storage-path on a cluster, "
            "when a node lacks the images or with --publish always); put the images at the same path"
        )
    found: dict[str, Split] = {}
    for name in noted["splits"]:
        found |= read_splits(_read(carrier, name))
    lacking = [key for key, digest in manifest.splits.items() if digest not in found]
    if lacking:
        raise DataError(f"task {lacking[0]} is not among what was published")
    splits = {task.key: found[manifest.splits[task.key]] for task in manifest.tasks}
    if content_digest(splits) != manifest.data.digest:
        raise ChangedDataError("what was published is of other images than those that the study began with")
    for key, name in noted["images"].items():
        _keep(carrier, key, name)
    return splits, len(noted["images"])


def _read(carrier: StorageCarrier, name: str) -> bytes:
    parcel = _whole(carrier, name)
    return b"".join(parts_of(parcel, storage_fetcher(parcel, carrier.uri)))


def _keep(carrier: StorageCarrier, key: str, name: str) -> None:
    """A set of decoded images in this machine's cache."""
    parcel = _whole(carrier, name)

    def fetch(target: Path) -> Mapping[str, Any]:
        unpack(parcel, storage_fetcher(parcel, carrier.uri), target)
        return parcel.about

    ImageCache(cache_folder()).adopt(key, parcel.about["images"], parcel.about["size"], fetch)


def _whole(carrier: StorageCarrier, name: str) -> Parcel:
    parcel = carrier.find(name)
    if parcel is None:
        raise BrokenParcelError(f"parcel {name[:12]} is gone from {carrier.where}, or damaged")
    return parcel
