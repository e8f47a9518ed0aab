"""Splits as a document, from which a machine without the images knows what is trained on and selected by.

Pixels travel apart (`ImageCache.adopt`). Of the test pool only names travel: no trial reads its images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from sctune.data.image_file import ImageFile
from sctune.data.pools import Files
from sctune.data.split import Split
from sctune.errors import DataError

FORMAT_VERSION = 1
LISTS = ("train", "selection", "calibration", "test", "development")
PLAIN = ("mode", "reason", "makers", "folds", "content")


def splits_document(splits: Iterable[Split], contents: Iterable[str]) -> bytes:
    """The splits as JSON, the same bytes for the same splits. contents: `data_digest` of each one's development files.

    Their warnings, which the driver has told, are left out.
    """
    rows: dict[ImageFile, int] = {}
    found = {}
    for split, content in zip(splits, contents, strict=True):
        one: dict[str, Any] = {name: getattr(split, name) for name in PLAIN} | {"content": content}
        one |= {name: [rows.setdefault(file, len(rows)) for file in getattr(split, name)] for name in LISTS}
        found[split.digest] = one | {"root": str(split.root)}
    document = {"format_version": FORMAT_VERSION, "files": [astuple(file) for file in rows], "splits": found}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def read_splits(document: bytes) -> dict[str, Split]:
    """Digest -> split, each with its `content`; raises DataError for what `splits_document` did not make."""
    try:
        tree = json.loads(document)
        version = tree["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(f"the published splits have format_version {version!r}, this sctune reads {FORMAT_VERSION}")
        files = [_file(row) for row in tree["files"]]
        found = [_split(one, files) for one in tree["splits"].values()]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as problem:
        raise DataError(f"the published splits are damaged: {problem}") from None
    return {split.digest: split for split in found}


def _file(row: list[Any]) -> ImageFile:
    path, label, kind, group, split, mask, more_masks = row
    return ImageFile(path, label, kind, group, split, mask, tuple(more_masks))


def _split(one: Mapping[str, Any], files: list[ImageFile]) -> Split:
    lists: dict[str, Files] = {name: tuple(files[row] for row in one[name]) for name in LISTS}
    return Split(
        root=Path(one["root"]),
        mode=str(one["mode"]),
        reason=str(one["reason"]),
        train=lists["train"],
        selection=lists["selection"],
        calibration=lists["calibration"],
        test=lists["test"],
        makers=bool(one["makers"]),
        warnings=(),
        development=lists["development"],
        folds=int(one["folds"]),
        content=str(one["content"]),
    )
