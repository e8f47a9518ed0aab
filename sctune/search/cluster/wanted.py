"""What a search wants of the nodes of a cluster, and how one of them is asked for it; plain data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sctune.data.digests import data_digest

if TYPE_CHECKING:
    from sctune.data.place import Needs


@dataclass(frozen=True)
class FileSet:
    """Images that every node must have: their folder, their paths below it, SHA-256 over names and contents, bytes."""

    root: str
    paths: tuple[str, ...]
    digest: str
    nbytes: int

    @staticmethod
    def here(root: Path, paths: Iterable[str]) -> FileSet:
        """As this machine has them; raises PlaceError for a file that cannot be read."""
        names = tuple(paths)
        digest = data_digest(root, names)
        return FileSet(str(root), names, digest, sum(os.path.getsize(root / name) for name in names))


@dataclass(frozen=True)
class Weights:
    """Of a backbone. file: that the configuration names; None: ImageNet's. sha256: of the driver's file."""

    file: str | None
    sha256: str


@dataclass(frozen=True)
class Wanted:
    """What the driver has and every node must have too, and what a trial takes.

    storage: URI of the study's checkpoints; empty: it is not asked about. needs: images and room to cache them; None:
    they are not asked about. weights: by backbone. cpus, gpus: of a trial; gpus None: a whole one where there are any.
    on_gpus: whether trials use those that they are given. published: whether a node takes images and weights that it
    lacks from the driver.
    """

    storage: str
    versions: Mapping[str, str]
    needs: Needs | None = None
    data: tuple[FileSet, ...] = ()
    weights: Mapping[str, Weights] = field(default_factory=dict)
    cpus: float = 1.0
    gpus: float | None = 0.0
    on_gpus: bool = True
    published: bool = False

    @property
    def nbytes(self) -> int:
        """Of the images that a node reads before it can answer."""
        return sum(one.nbytes for one in self.data)


@dataclass(frozen=True)
class Question:
    """What one node is asked, beside what is wanted of all.

    marker: a file in the storage that the driver wrote, with its content; answer: the file that the node is to write;
    both empty: the storage is not asked about. trains: whether trials run there; gpus: that Ray counts there and trials
    take. limit_s: for all parts together.
    """

    marker: str
    answer: str
    content: bytes
    trains: bool
    gpus: int
    head: bool
    limit_s: float


def beside(storage: str) -> str:
    """The folder, or URI, that the folder of a study's checkpoints lies in, for people."""
    return storage.partition("?")[0].rpartition("/")[0] or "/"
