"""Images of other things, which SAOE shows as anomalies (outlier exposure, Hendrycks et al., ICLR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sctune.config import TrialConfig
from sctune.data.batches import stream
from sctune.data.catalog import DataSet, open_dataset
from sctune.data.decode import Decoding
from sctune.data.digests import joined_digest
from sctune.data.images import ImageCache
from sctune.data.layouts import folders_in, is_mvtec, read_mvtec
from sctune.data.walk import images_below
from sctune.errors import DataError
from sctune.paths import cache_folder


@dataclass(frozen=True)
class Outliers:
    """images: uint8 [N, S, S, 3], mapped from disk; rows: those that can be used; digest: of their names and files."""

    images: np.ndarray
    rows: np.ndarray
    digest: str


def open_outliers(folder: Path, limit: int, config: TrialConfig) -> Outliers:
    """The outliers of a folder, decoded as the task's own images are; at most `limit`, always the same ones.

    Copies of the task's own files are left out. Raises DataError for a folder that is missing or holds no image but
    those of the task's own data set, and what decoding raises.
    """
    data, own = config.data, _own(config)
    paths = _paths(folder, own, data.source)
    if len(paths) > limit:
        drawn = torch.randperm(len(paths), generator=stream(0, "outliers")).tolist()[:limit]
        paths = [paths[row] for row in sorted(drawn)]
    cache = ImageCache(cache_folder())
    cached = cache.array(folder, paths, Decoding.of(data), data.skip_corrupt)
    known = set(cache.digests(own.root, [file.path for file in own.files]).values())
    digests = {path: digest for path, digest in cache.digests(folder, cached.index).items() if digest not in known}
    if not digests:
        raise _nothing(folder, own)
    rows = np.array(sorted(cached.index[path] for path in digests), int)
    return Outliers(cached.array, rows, joined_digest(digests))


def outlier_paths(folder: Path, config: TrialConfig) -> list[str]:
    """Sorted paths of a folder's outliers, relative to it.

    Where it, or folders below it, have the MVTec layout, these are their training normals; else all images below. The
    files of the task's data set are no outliers, nor what else lies in its folder: none of its test images, or masks of
    them, may be seen.
    """
    return _paths(folder, _own(config), config.data.source)


def _paths(folder: Path, own: DataSet, source: str) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"method.outlier_root={folder} is no folder; give one with images of other things, or none")
    known = {(own.root / file.path).resolve() for file in own.files}
    # the root of a CSV file, or of two folders, may hold other things too
    inside = own.root.resolve() if source == "elpv" or Path(source).expanduser().is_dir() else None

    def is_own(path: str) -> bool:
        place = (folder / path).resolve()
        return place in known or (inside is not None and place.is_relative_to(inside))

    found = [path for path in _normals(folder) or images_below(folder)[0] if not is_own(path)]
    if not found:
        raise _nothing(folder, own)
    return sorted(found)


def _own(config: TrialConfig) -> DataSet:
    return open_dataset(config.data.source, config.data.category, config.data.group)


def _nothing(folder: Path, own: DataSet) -> DataError:
    return DataError(
        f"method.outlier_root={folder} holds no image but those of {own.name}; give a folder of other things"
    )


def _normals(folder: Path) -> list[str]:
    """Training normals of all folders in the MVTec layout, this one or below it; each is read once, links or not."""
    found, todo, seen = [], [folder], set()
    while todo:
        place = todo.pop()
        real = place.resolve()
        if real in seen:
            continue
        seen.add(real)
        if is_mvtec(place):
            files = [file for file in read_mvtec(place).files if file.label == 0 and file.split == "train"]
            found += [(place.relative_to(folder) / file.path).as_posix() for file in files]
        else:
            todo += [place / name for name in folders_in(place)]
    return found
