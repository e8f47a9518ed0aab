"""How images lie on disk: the MVTec layout, ok/nok folders, two plain folders, the raw ELPV layout.

Every reader returns ImageFiles with POSIX paths relative to one root; nothing is decoded here.
"""

from __future__ import annotations

import math
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from sctune.data.csv_source import existing
from sctune.data.csv_text import read_text
from sctune.data.image_file import GOOD, UNNAMED, ImageFile, Reading
from sctune.data.mask_names import MaskNames, without_masks
from sctune.data.places import looking_at, refuse_unprintable
from sctune.data.walk import LeftOut, Level, images_below, level, read_types
from sctune.data.words import folded, is_good_folder, refuse_contrary
from sctune.errors import DataError

Item = TypeVar("Item")

OK_FOLDERS = ("ok",)
NOK_FOLDERS = ("nok", "ng")
LOOSE = "image(s) outside of a class folder"


def list_images(folder: Path) -> list[str]:
    """Sorted POSIX paths, relative to the folder, of all images in it and below; hidden ones are left out.

    Raises DataError when the folder is missing, unfinished, cannot be listed or holds no image.
    """
    return _listed(folder)[0]


def folders_in(folder: Path) -> list[str]:
    """Sorted names of the visible folders directly below, those of systems (thumbnails) left out; empty where there is
    no such folder."""
    if not folder.is_dir():
        return []
    names = level(folder).folders
    for name in names:
        refuse_unprintable(name)
    return names


def is_mvtec(folder: Path) -> bool:
    """Whether the folder holds train/good, in any case."""
    if (folder / "train" / GOOD).is_dir():
        return True
    return any(is_good_folder(kind) for name in _called(folder, "train") for kind in folders_in(folder / name))


def is_ok_nok(folder: Path) -> bool:
    """Whether the folder holds ok, in any case."""
    return bool((folder / "ok").is_dir() or _called(folder, *OK_FOLDERS))


def elpv_folder(folder: Path) -> Path | None:
    """Where labels.csv of the raw ELPV layout lies: at the top, or in the repository's package."""
    places = (folder, folder / "src" / "elpv_dataset" / "data", folder / "data")
    return next((place for place in places if (place / "labels.csv").is_file()), None)


def read_mvtec(folder: Path) -> Reading:
    """{train,test}/{good,DEFECT}/*, masks as in `MaskNames`; empty folders of images are refused.

    The good class may be called by any word for good, in any case. Raises DataError for one inside of a defect folder.
    """
    top = level(folder)
    names = top.folders
    truths = _matching(names, "ground_truth")
    masks = MaskNames(f"{name}/{path}" for name in truths for path in _found(folder / name)[0])
    files, left, notes = [], LeftOut(), []
    for name in [*_matching(names, "train"), *_matching(names, "test")]:
        split = folder / name
        beside = level(split)
        left.join(beside.left_out, f"{name}/")
        for loose in beside.files:
            left.add(LOOSE, f"{name}/{loose}")
        good = [kind for kind in beside.folders if is_good_folder(kind)]
        if good not in ([], [GOOD]):
            called = " and ".join(repr(f"{name}/{kind}") for kind in good)
            notes.append(f"{folder}: {called} read as the class {GOOD}")
        for kind in beside.folders:
            refuse_unprintable(kind)
            files += _class(folder, name, kind, masks, truths, left)
    notes += _beside(folder, top, ("train", "test", "ground_truth"), left)
    if masks.unused:
        notes.append(f"{folder}: {len(masks.unused)} mask(s) match no image, the first is {masks.unused[0]}")
    return Reading(files, [*notes, *without_masks(folder, files)])


def read_ok_nok(folder: Path) -> Reading:
    """ok/* normal, nok/* or nok/TYPE/* anomalous, in any case, also ng; the anomalies may be missing."""
    top, left = level(folder), LeftOut()
    files = []
    for name in _matching(top.folders, *OK_FOLDERS):
        files += _labelled(folder, name, 0, left)
    for name in _matching(top.folders, *NOK_FOLDERS):
        files += _labelled(folder, name, 1, left)
    return Reading(files, _beside(folder, top, (*OK_FOLDERS, *NOK_FOLDERS), left))


def read_folder(root: Path, name: str, label: int) -> Reading:
    """All images of one folder below root with one label; its sub-folders name the anomaly types.

    Raises DataError for a folder, it or one below, whose name says the contrary of the label.
    """
    refuse_contrary(str(root / name), Path(name).parts[-1:], label)
    left = LeftOut()
    files = _labelled(root, name, label, left)
    line = left.line(str(root / name))
    return Reading(files, [line] if line else [])


def read_elpv(folder: Path) -> list[ImageFile]:
    """The raw ELPV layout (METHODS 6): probability 0 is normal, 1 anomalous, anything between is dropped.

    The normals are split 75/25 in CSV order with seed 42; anomalies are of kind mono or poly, the cell type.
    """
    normal, anomalous = [], []
    for line, text in enumerate(read_text(folder / "labels.csv").splitlines(), start=1):
        place = f"{folder / 'labels.csv'}, line {line}"
        try:
            name, probability, kind = text.split()
            value = float(probability)
        except ValueError:
            raise DataError(f"{place}: {text!r} must be an image, a probability and mono or poly") from None
        if not 0 <= value <= 1:
            raise DataError(f"{place}: the probability {probability} must lie in 0 to 1")
        if value == 0:
            normal.append(existing(folder, name, place))
        elif value == 1:
            anomalous.append(ImageFile(path=existing(folder, name, place), label=1, kind=kind, split="test"))
    train, test = quarter_split(normal)
    files = [ImageFile(path=path, label=0, kind=GOOD, split="train") for path in train]
    return files + [ImageFile(path=path, label=0, kind=GOOD, split="test") for path in test] + anomalous


def quarter_split(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """scikit-learn's train_test_split(items, test_size=0.25, random_state=42): three quarters and one, as drawn."""
    held = math.ceil(len(items) / 4)
    order = np.random.RandomState(42).permutation(len(items))
    return [items[row] for row in order[held:]], [items[row] for row in order[:held]]


def refuse_two_meanings(root: Path, files: list[ImageFile]) -> None:
    """Raises DataError for one file, reached by links, under two labels, types or splits."""
    seen: dict[tuple[int, int], ImageFile] = {}
    for file in files:
        with suppress(OSError):
            # what a broken link leads to is told when it is read
            found = (root / file.path).stat()
            other = seen.setdefault((found.st_dev, found.st_ino), file)
            if (file.label, file.kind, file.split) != (other.label, other.kind, other.split):
                raise DataError(
                    f"{root}: {other.path} and {file.path} are one file, by a link, in two classes or splits; take "
                    "one of them out"
                )


def _class(folder: Path, name: str, kind: str, masks: MaskNames, truths: list[str], left: LeftOut) -> list[ImageFile]:
    """The images of one class folder of the MVTec layout."""
    good = is_good_folder(kind)
    files = []
    for path in _checked(folder / name / kind, int(not good), left, f"{name}/{kind}/"):
        found = [mask for truth in truths for mask in masks.of(f"{truth}/{kind}/{path}")]
        if good:
            found = []
        files.append(
            ImageFile(
                path=f"{name}/{kind}/{path}",
                label=int(not good),
                kind=GOOD if good else kind,
                split="train" if folded(name) == "train" else "test",
                mask=found[0] if found else None,
                more_masks=tuple(found[1:]),
            )
        )
    return files


def _labelled(root: Path, name: str, label: int, left: LeftOut) -> list[ImageFile]:
    files = []
    for path in _checked(root / name, label, left, f"{name}/"):
        kind, _, rest = path.partition("/")
        kind = GOOD if label == 0 else kind if rest else UNNAMED
        files.append(ImageFile(path=(Path(name) / path).as_posix(), label=label, kind=kind))
    return files


def _checked(folder: Path, label: int, left: LeftOut, prefix: str) -> list[str]:
    """The images of a folder with one label; raises DataError for a folder below that says the contrary."""
    paths, found = _listed(folder)
    left.join(found, prefix)
    for below in sorted({PurePosixPath(path).parent for path in paths}):
        refuse_contrary(str(folder / below), below.parts, label)
    return paths


def _beside(folder: Path, top: Level, known: tuple[str, ...], left: LeftOut) -> list[str]:
    """Notes about what was left out of a layout, and about folders at its top that are no part of it."""
    for name in top.files:
        left.add(LOOSE, name)
    line = left.line(str(folder))
    others = [name for name in top.folders if folded(name) not in known]
    notes = [line] if line else []
    if others:
        notes.append(f"{folder}: not read, since no part of this layout: {', '.join(map(repr, others))}")
    return notes


def _called(folder: Path, *words: str) -> list[str]:
    return _matching(folders_in(folder), *words)


def _matching(names: list[str], *words: str) -> list[str]:
    return [name for name in names if folded(name) in words]


def _listed(folder: Path) -> tuple[list[str], LeftOut]:
    """As list_images, with what was left out."""
    with looking_at(folder):
        there = folder.is_dir()
    if not there:
        raise DataError(f"there is no folder {folder}")
    found, left = _found(folder)
    if not found:
        line = left.line("it")
        raise DataError(f"{folder} holds no images; {line or f'{read_types()} are read'}")
    return found, left


def _found(folder: Path) -> tuple[list[str], LeftOut]:
    """As list_images, of an existing folder that may be empty, with what was left out."""
    found, left = images_below(folder, finished=True)
    for path in found:
        _refuse_odd(folder, path)
    return found, left


def _refuse_odd(folder: Path, path: str) -> None:
    """Names that no table of results can hold, and what is no file but would be read for ever (pipes, devices)."""
    refuse_unprintable(path)
    with suppress(OSError):
        # what a broken link leads to is told when it is read
        if not stat.S_ISREG((folder / path).stat().st_mode):
            raise DataError(f"{folder / path} is no regular file; take it out of the folder")
