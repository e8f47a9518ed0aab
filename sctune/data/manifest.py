"""manifest.json of a prepared data set: where each image comes from, its hash, class, split and source unit.

`sctune data prepare` writes it last, so a folder that has it is complete; while it works the folder holds
`manifest.unfinished.json` instead.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sctune.data.places import looking_at, resolved
from sctune.errors import DataError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
UNFINISHED = "manifest.unfinished.json"
MAKER = "sctune data prepare"


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise ValueError("a path that leaves the folder")
    return path


InsidePath = Annotated[str, AfterValidator(_inside)]
Split = Literal["train", "test"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class FileRecord(_Frozen):
    """One image of the prepared folder.

    path: relative to the folder; source: raw file, relative to the raw folder; sha256: of the written file; kind:
    `good` or the defect type (`class` in the file); unit: the part or strip that the image was cut from; group: the
    source unit that no split may cut, where there is one (`ImageFile.group`); mask: path of the defect mask.
    """

    path: InsidePath
    source: str
    sha256: str
    kind: str = Field(alias="class")
    split: Split
    unit: str | None = None
    group: str | None = None
    mask: InsidePath | None = None
    mask_sha256: str | None = None


class Options(_Frozen):
    """How the folder was asked for; a started one goes on only with the same."""

    allow_counts: bool = False
    group_split: bool = False


class Manifest(_Frozen):
    """What stands in manifest.json.

    data_set: name for `sctune data prepare`; source: the raw folder, or the installed package; created: ISO 8601,
    UTC; group: regular expression for `data.group` that finds the source unit in a path, None where there is none;
    counts: images by folder; differences: from the published counts, empty unless they were allowed.
    """

    made_by: str = MAKER
    format_version: int = FORMAT_VERSION
    data_set: str
    title: str
    source: str
    created: str
    licence: str
    attribution: str
    page: str
    options: Options
    group: str | None = None
    counts: dict[str, int] = {}
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[FileRecord, ...] = ()

    @property
    def categories(self) -> list[str]:
        """Sub-folders that each hold one data set in the MVTec layout; empty where the folder itself does."""
        return sorted({parts[0] for parts in (PurePosixPath(path).parts for path in self.counts) if len(parts) > 2})

    def to_json(self) -> str:
        return self.model_dump_json(indent=1, by_alias=True, exclude_none=True) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder that `sctune data prepare` has finished.

    Raises DataError for a folder without one, an unfinished one, and a damaged or newer manifest.
    """
    refuse_unfinished(folder)
    text = _own_text(folder / MANIFEST)
    if text is None:
        raise DataError(f"{folder} has no {MANIFEST} of `{MAKER}`; give a folder that it made, not one below it")
    return parse_manifest(text, folder / MANIFEST)


def find_manifest(place: Path) -> tuple[Manifest, str] | None:
    """The manifest that describes a folder, and the category that it is ("" for the whole data set).

    None for folders that sctune did not prepare. Raises DataError for unfinished ones.
    """
    refuse_unfinished(place)
    for folder, category in ((place, ""), (place.parent, place.name)):
        text = _own_text(folder / MANIFEST)
        if text is not None:
            manifest = parse_manifest(text, folder / MANIFEST)
            if not category or category in manifest.categories:
                return manifest, category
    return None


def refuse_unfinished(*folders: Path) -> None:
    """Raises DataError where one of the folders is, or lies in, one that `sctune data prepare` has not finished."""
    places = {place for folder in map(resolved, folders) for place in (folder, *folder.parents)}
    for place in sorted(places):
        with looking_at(place):
            unfinished = (place / UNFINISHED).exists()
        if unfinished:
            raise unfinished_error(place)


def unfinished_error(folder: Path) -> DataError:
    return DataError(f"{folder} is unfinished; run the same `{MAKER}` command again, it goes on where it was")


def parse_manifest(text: str, path: Path) -> Manifest:
    """Raises DataError, naming the path, for text that is no manifest of this version."""
    try:
        content = json.loads(text)
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise DataError(f"{path} has format version {version}; this sctune reads {FORMAT_VERSION}, prepare again")
        return Manifest.model_validate(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is damaged: {place}: {first['msg']}; prepare the data again") from None
    except (ValueError, AttributeError) as problem:
        raise DataError(f"{path} is damaged: {problem}; prepare the data again") from None


def _own_text(path: Path) -> str | None:
    """The file's text where sctune made it: other tools have files of this name too."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror}") from None
    return text if MAKER in text[:200] else None
