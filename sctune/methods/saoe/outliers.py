"""Images of other things, which SAOE shows as anomalies (outlier exposure, Hendrycks et al., ICLR 2019)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sctune.config import TrialConfig
from sctune.data.batches import stream
from sctune.data.catalog import open_dataset
from sctune.data.decode import Decoding
from sctune.data.images import ImageCache
from sctune.data.layouts import folders_in, is_mvtec, read_mvtec
from sctune.data.walk import images_below
from sctune.errors import DataError
from sctune.paths import cache_folder


@dataclass(frozen=True)
class Outliers:
    """images: uint8 [N, S, S, 3], mapped from disk; rows: those that can be used; digest: of the files' names."""

    images: np.ndarray
    rows: np.ndarray
    digest: str


def open_outliers(folder: Path, limit: int, config: TrialConfig) -> Outliers:
    """The outliers of a folder, decoded as the task's own images are; at most `limit`, always the same ones.

    Raises DataError for a folder that is missing or holds no image but those of the task's own data set, and what
    decoding raises.
    """
    paths = outlier_paths(folder, config)
    if len(paths) > limit:
        drawn = torch.randperm(len(paths), generator=stream(0, "outliers")).tolist()[:limit]
        paths = [paths[row] for row in sorted(drawn)]
    data = config.data
    cached = ImageCache(cache_folder()).array(folder, paths, Decoding.of(data), data.skip_corrupt)
    rows = np.array(sorted(cached.index.values()), int)
    return Outliers(cached.array, rows, hashlib.sha256(json.dumps(sorted(cached.index)).encode()).hexdigest())


def outlier_paths(folder: Path, config: TrialConfig) -> list[str]:
    """Sorted paths of a folder's outliers, relative to it.

    Where it, or folders in it, have the MVTec layout, these are their training normals; else all images below. The
    files of the task's data set are no outliers, and none of its test images may be seen.
    """
    if not folder.is_dir():
        raise DataError(f"method.outlier_root={folder} is no folder; give one with images of other things, or none")
    data = config.data
    own = open_dataset(data.source, data.category, data.group)
    known = {(own.root / file.path).resolve() for file in own.files}
    found = _normals(folder)
    if found is None:
        found = images_below(folder)[0]
    paths = sorted(path for path in found if (folder / path).resolve() not in known)
    if not paths:
        raise DataError(
            f"method.outlier_root={folder} holds no image but those of {own.name}; give a folder of other things"
        )
    return paths


def _normals(folder: Path) -> list[str] | None:
    """Training normals of a folder in the MVTec layout, or of the folders in it; None where there are no such."""
    if is_mvtec(folder):
        return [file.path for file in read_mvtec(folder).files if file.label == 0 and file.split == "train"]
    names = [name for name in folders_in(folder) if is_mvtec(folder / name)]
    if not names:
        return None
    return [f"{name}/{path}" for name in names for path in _normals(folder / name) or ()]
