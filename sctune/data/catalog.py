"""The data sets by name or place: what is opened, how it is recognised, its licence.

A source is one string, so that a configuration can carry it: `elpv`, a folder, a CSV file, or
`normal=DIR;anomalous=DIR`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from sctune.data import layouts
from sctune.data.csv_source import read_csv
from sctune.data.image_file import ImageFile, Reading
from sctune.data.licences import KNOWN, NOT_STATED, terms_of
from sctune.data.manifest import MANIFEST, Manifest, find_manifest
from sctune.data.mask_names import masks_as_images
from sctune.data.places import looking_at
from sctune.errors import DataError, nearest

__all__ = ["NOT_STATED", "DataSet", "ImageFile", "folders_source", "open_dataset", "open_folders"]


@dataclass(frozen=True)
class DataSet:
    """Images with labels below one root.

    files: sorted by path; licence: of the images; attribution: what a picture made from them must carry; notes: one
    line each for the user, about what was left out or could be meant otherwise.
    """

    name: str
    root: Path
    files: tuple[ImageFile, ...]
    licence: str = NOT_STATED
    attribution: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        paths = Counter(file.path for file in self.files)
        twice = [path for path, times in sorted(paths.items()) if times > 1]
        if twice:
            raise DataError(f"{self.name}: {twice[0]!r} is listed {paths[twice[0]]} times; each image may occur once")
        if not any(file.label == 0 for file in self.files):
            raise DataError(f"{self.name}: no normal images among {len(self.files)}; training needs them")
        object.__setattr__(self, "files", tuple(sorted(self.files, key=lambda file: file.path)))

    @property
    def normals(self) -> tuple[ImageFile, ...]:
        return tuple(file for file in self.files if file.label == 0)

    @property
    def anomalies(self) -> tuple[ImageFile, ...]:
        return tuple(file for file in self.files if file.label == 1)

    @property
    def kinds(self) -> list[str]:
        """Sorted anomaly types: the classes of the hard setting."""
        return sorted({file.kind for file in self.anomalies})


def open_dataset(source: str, category: str | None = None, group: str | None = None) -> DataSet:
    """Find and list a data set; no image is decoded.

    source: `elpv` (the installed package; `./elpv` for a folder of that name), a folder (MVTec layout, `ok/` and
    `nok/[type/]`, raw ELPV layout), a CSV file, or `normal=DIR;anomalous=DIR`. category: sub-folder, as in MVTec AD.
    group: regular expression; its first group in the relative path names the source unit (wins over a CSV column and
    over the manifest of `sctune data prepare`, which otherwise gives name, licence and units of a prepared folder).
    Raises DataError with one line for everything that cannot be used.
    """
    with looking_at(source):
        return _open(source, category, group)


def open_folders(normal: str, anomalous: str, group: str | None = None) -> DataSet:
    """One folder of normal and one of anomalous images; sub-folders of the latter name the anomaly types.

    Paths are relative to the folder that holds both. Raises DataError where one lies inside the other, and for
    unfinished ones.
    """
    good, bad = _absolute(normal), _absolute(anomalous)
    if good.is_relative_to(bad) or bad.is_relative_to(good):
        raise DataError(f"{good} and {bad} must be two separate folders; one holds the other")
    root = Path(os.path.commonpath([good, bad]))
    normals = layouts.read_folder(root, str(good.relative_to(root)), label=0)
    anomalies = layouts.read_folder(root, str(bad.relative_to(root)), label=1)
    both = Reading(normals.files + anomalies.files, normals.notes + anomalies.notes)
    return _of_folders(f"{good.name}+{bad.name}", root, both, group)


def folders_source(normal: str | Path, anomalous: str | Path) -> str:
    """The source string of `--normal DIR --anomalous DIR`, with absolute paths."""
    return f"normal={_absolute(str(normal))};anomalous={_absolute(str(anomalous))}"


def _open(source: str, category: str | None, group: str | None) -> DataSet:
    folders = re.fullmatch(r"normal=(.+);anomalous=(.+)", source)
    if folders:
        _no_category(source, category)
        return open_folders(folders[1], folders[2], group)
    if source == "elpv":
        _no_category(source, category)
        data = _elpv("elpv", installed_elpv(), group)
        return replace(data, notes=_other_elpv())
    place = _absolute(source)
    if place.is_file():
        if place.suffix.lower() != ".csv":
            raise DataError(f"{place} is a file, but no .csv; give elpv, a folder or a CSV file")
        _no_category(source, category)
        rows = read_csv(place)
        return _stated(place.stem, place.parent, _grouped(rows.files, group), tuple(rows.notes))
    if not place.is_dir():
        raise DataError(f"there is no folder or CSV file {place}; give elpv, a folder or a CSV file")
    return _open_folder(place, category, group)


def _open_folder(place: Path, category: str | None, group: str | None) -> DataSet:
    if category is not None:
        known = _categories(place)
        if category not in known:
            raise DataError(f"{place} has no category {category!r}; {nearest(category, known)}")
        return _open_folder(place / category, None, group)
    prepared = find_manifest(place)
    if layouts.is_mvtec(place):
        if prepared:
            return _prepared(place, *prepared, group)
        return _of_folders(place.name, place, layouts.read_mvtec(place), group)
    if layouts.is_ok_nok(place):
        return _of_folders(place.name, place, layouts.read_ok_nok(place), group)
    elpv = layouts.elpv_folder(place)
    if elpv:
        return _elpv(place.name, elpv, group)
    categories = _categories(place)
    if categories:
        raise DataError(f"{place} holds several categories; choose one of {', '.join(categories)} (data.category)")
    layouts.list_images(place)
    raise DataError(
        f"{place} has no known layout; it needs train/good and test/good, test/TYPE (MVTec), ok/ and nok/, or use "
        "a CSV file, or --normal DIR --anomalous DIR"
    )


def sole_category(place: Path) -> str | None:
    """The only category of a folder that has no layout of its own; None where it has one, or other than one.

    Raises DataError for a folder that cannot be read.
    """
    with looking_at(place):
        if _has_layout(place) or layouts.elpv_folder(place):
            return None
        categories = _categories(place)
        return categories[0] if len(categories) == 1 else None


def _categories(place: Path) -> list[str]:
    return [name for name in layouts.folders_in(place) if _has_layout(place / name)]


def _of_folders(name: str, root: Path, found: Reading, group: str | None) -> DataSet:
    layouts.refuse_two_meanings(root, found.files)
    notes = (*found.notes, *masks_as_images(root, found.files))
    return _stated(name, root, _grouped(found.files, group), notes)


def _stated(name: str, root: Path, files: tuple[ImageFile, ...], notes: tuple[str, ...]) -> DataSet:
    """A data set that no manifest describes, with what can be known of its licence."""
    terms = terms_of(root)
    return DataSet(name, root, files, terms.licence, terms.attribution, (*notes, *terms.notes))


def _has_layout(folder: Path) -> bool:
    return layouts.is_mvtec(folder) or layouts.is_ok_nok(folder)


def _prepared(place: Path, manifest: Manifest, category: str, group: str | None) -> DataSet:
    """A folder of `sctune data prepare`: its manifest, which must fit the files, gives name, licence and units."""
    prefix = f"{category}/" if category else ""
    records = {record.path.removeprefix(prefix): record for record in manifest.files if record.path.startswith(prefix)}
    files, notes = layouts.read_mvtec(place)
    differing = sorted(records.keys() ^ {file.path for file in files})
    if differing:
        raise DataError(
            f"{place}: {len(differing)} images are missing or new since it was prepared, first {differing[0]}; see "
            f"`sctune data verify`, and prepare it again (without {MANIFEST} it is a folder of your own)"
        )
    if group is None:
        files = [replace(file, group=records[file.path].group or file.path) for file in files]
    name = f"{manifest.data_set}/{category}" if category else manifest.data_set
    return DataSet(name, place, _grouped(files, group), manifest.licence, manifest.attribution, tuple(notes))


def _elpv(name: str, folder: Path, group: str | None) -> DataSet:
    terms = KNOWN["elpv"]
    return DataSet(name, folder, _grouped(layouts.read_elpv(folder), group), terms.licence, terms.attribution)


def _other_elpv() -> tuple[str, ...]:
    """The note where a folder could be meant instead of the installed package."""
    try:
        folder = Path.cwd() / "elpv"
        if folder.is_dir():
            return (f"elpv is the data set of the installed package, not the folder {folder}; write ./elpv for that",)
    except OSError:  # a working folder that is gone or closed
        pass
    return ()


def installed_elpv() -> Path:
    """The folder with labels.csv in the package elpv-dataset; raises DataError where it is not installed."""
    # found without importing it: the package pulls in code that is not needed for its files
    spec = find_spec("elpv_dataset")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = layouts.elpv_folder(Path(place))
        if folder:
            return folder
    raise DataError('the ELPV images are not installed; run: pip install "sctune[demo]"')


def _grouped(files: Iterable[ImageFile], pattern: str | None) -> tuple[ImageFile, ...]:
    if pattern is None:
        return tuple(files)
    try:
        unit = re.compile(pattern)
    except re.error as problem:
        raise DataError(f"data.group={pattern!r} is no regular expression: {problem}") from None
    if unit.groups < 1:
        raise DataError(f"data.group={pattern!r} needs a group in parentheses that names the source unit")
    grouped = []
    for file in files:
        match = unit.search(file.path)
        if not match or not match[1]:
            raise DataError(f"data.group={pattern!r} finds no source unit in {file.path!r}; it must match every path")
        grouped.append(replace(file, group=match[1]))
    return tuple(grouped)


def _absolute(text: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(text)))


def _no_category(source: str, category: str | None) -> None:
    if category is not None:
        raise DataError(f"data.category={category!r}: {source} has no categories; leave it out")
