"""How images lie on disk: the MVTec layout, ok/nok folders, two plain folders, a CSV file, the raw ELPV layout.

Every reader returns ImageFiles with POSIX paths relative to one root; nothing is decoded here.
"""

from __future__ import annotations

import csv
import math
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from sctune.data.manifest import UNFINISHED, refuse_unfinished, unfinished_error
from sctune.data.places import looking_at, refuse_unprintable
from sctune.errors import DataError

Item = TypeVar("Item")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy")
"""File types that are read, in any case."""

GOOD = "good"
UNNAMED = "anomaly"
"""Kind of an anomaly whose type is not given."""

NORMAL_WORDS = frozenset({"0", "0.0", "normal", "good", "ok"})
ANOMALOUS_WORDS = frozenset({"1", "1.0", "anomalous", "anomaly", "defect", "defective", "nok", "bad"})
COLUMNS = ("path", "label", "type", "group", "mask", "split")


@dataclass(frozen=True)
class ImageFile:
    """One image of a data set.

    path: POSIX, relative to the data set's root; label: 0 normal, 1 anomalous; kind: `good` or the defect type;
    group: the source unit (part, strip, wafer), which no split ever cuts, the path itself where none is known;
    split: where its maker put it, None where they did not say; mask: path of the defect mask, if there is one.
    """

    path: str
    label: int
    kind: str
    group: str = ""
    split: Literal["train", "test"] | None = None
    mask: str | None = None

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.path)


def list_images(folder: Path) -> list[str]:
    """Sorted POSIX paths, relative to the folder, of all images in it and below; hidden ones are left out.

    Raises DataError when the folder is missing, unfinished, cannot be listed or holds no image.
    """
    with looking_at(folder):
        there = folder.is_dir()
    if not there:
        raise DataError(f"there is no folder {folder}")
    found = _images_below(folder)
    if not found:
        raise DataError(f"{folder} holds no images; {_types()} are read")
    return found


def folders_in(folder: Path) -> list[str]:
    """Sorted names of the visible folders directly below; empty where there is no such folder."""
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        refuse_unprintable(name)
    return names


def is_mvtec(folder: Path) -> bool:
    return (folder / "train" / GOOD).is_dir()


def is_ok_nok(folder: Path) -> bool:
    return (folder / "ok").is_dir()


def elpv_folder(folder: Path) -> Path | None:
    """Where labels.csv of the raw ELPV layout lies: at the top, or in the repository's package."""
    places = (folder, folder / "src" / "elpv_dataset" / "data", folder / "data")
    return next((place for place in places if (place / "labels.csv").is_file()), None)


def read_mvtec(folder: Path) -> list[ImageFile]:
    """{train,test}/{good,DEFECT}/*, masks in ground_truth/DEFECT/STEM_mask.*; empty folders of images are refused."""
    truth = folder / "ground_truth"
    masks = {Path(path).with_suffix("").as_posix(): path for path in _images_below(truth)} if truth.is_dir() else {}
    files = []
    for split in ("train", "test"):
        for kind in folders_in(folder / split):
            for name in list_images(folder / split / kind):
                mask = masks.get(f"{kind}/{Path(name).with_suffix('').as_posix()}_mask")
                files.append(
                    ImageFile(
                        path=f"{split}/{kind}/{name}",
                        label=int(kind != GOOD),
                        kind=kind,
                        split="train" if split == "train" else "test",
                        mask=f"ground_truth/{mask}" if mask and kind != GOOD else None,
                    )
                )
    return files


def read_ok_nok(folder: Path) -> list[ImageFile]:
    """ok/* normal, nok/* or nok/TYPE/* anomalous; nok may be missing."""
    files = read_folder(folder, "ok", label=0)
    return files + (read_folder(folder, "nok", label=1) if (folder / "nok").is_dir() else [])


def read_folder(root: Path, name: str, label: int) -> list[ImageFile]:
    """All images of one folder below root with one label; its sub-folders name the anomaly types."""
    files = []
    for path in list_images(root / name):
        kind, _, rest = path.partition("/")
        kind = GOOD if label == 0 else kind if rest else UNNAMED
        files.append(ImageFile(path=(Path(name) / path).as_posix(), label=label, kind=kind))
    return files


def read_csv(path: Path) -> list[ImageFile]:
    """A CSV file with a header; only `path` and `label` are required, paths are relative to the CSV's folder."""
    root = path.parent
    files = []
    for line, row in _csv_rows(path):
        place = f"{path}, line {line}"
        image = _existing(root, row.get("path", ""), place)
        if not image.lower().endswith(SUFFIXES):
            raise DataError(f"{place}: {image!r} is no image; {_types()} are read")
        label = _label(row.get("label", ""), place)
        split = row.get("split", "").lower()
        if split not in ("", "train", "test"):
            raise DataError(f"{place}: split {split!r} must be train, test or empty")
        files.append(
            ImageFile(
                path=image,
                label=label,
                kind=GOOD if label == 0 else row.get("type", "") or UNNAMED,
                group=row.get("group", ""),
                split="train" if split == "train" else "test" if split == "test" else None,
                mask=_existing(root, row["mask"], place) if row.get("mask") else None,
            )
        )
    if not files:
        raise DataError(f"{path} has a header and no rows")
    refuse_unfinished(*{(root / file.path).parent for file in files})
    return files


def read_elpv(folder: Path) -> list[ImageFile]:
    """The raw ELPV layout (METHODS 6): probability 0 is normal, 1 anomalous, anything between is dropped.

    The normals are split 75/25 in CSV order with seed 42; anomalies are of kind mono or poly, the cell type.
    """
    normal, anomalous = [], []
    for line, text in enumerate(_text(folder / "labels.csv").splitlines(), start=1):
        place = f"{folder / 'labels.csv'}, line {line}"
        try:
            name, probability, kind = text.split()
            value = float(probability)
        except ValueError:
            raise DataError(f"{place}: {text!r} must be an image, a probability and mono or poly") from None
        if not 0 <= value <= 1:
            raise DataError(f"{place}: the probability {probability} must lie in 0 to 1")
        if value == 0:
            normal.append(_existing(folder, name, place))
        elif value == 1:
            anomalous.append(ImageFile(path=_existing(folder, name, place), label=1, kind=kind, split="test"))
    train, test = quarter_split(normal)
    files = [ImageFile(path=path, label=0, kind=GOOD, split="train") for path in train]
    return files + [ImageFile(path=path, label=0, kind=GOOD, split="test") for path in test] + anomalous


def quarter_split(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """scikit-learn's train_test_split(items, test_size=0.25, random_state=42): three quarters and one, as drawn."""
    held = math.ceil(len(items) / 4)
    order = np.random.RandomState(42).permutation(len(items))
    return [items[row] for row in order[held:]], [items[row] for row in order[:held]]


def _images_below(folder: Path) -> list[str]:
    """As list_images, of an existing folder that may be empty."""
    refuse_unfinished(folder)

    def refuse(problem: OSError) -> None:
        raise DataError(f"cannot list {problem.filename}: {problem.strerror}")

    found = []
    for place, below, names in os.walk(folder, onerror=refuse):
        if UNFINISHED in names:
            raise unfinished_error(Path(place))
        below[:] = [name for name in below if not name.startswith(".")]
        prefix = Path(place).relative_to(folder)
        images = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        found += [(prefix / name).as_posix() for name in images]
    for path in found:
        _refuse_odd(folder, path)
    return sorted(found)


def _refuse_odd(folder: Path, path: str) -> None:
    """Names that no table of results can hold, and what is no file but would be read for ever (pipes, devices)."""
    refuse_unprintable(path)
    with suppress(OSError):
        # what a broken link leads to is told when it is read
        if not stat.S_ISREG((folder / path).stat().st_mode):
            raise DataError(f"{folder / path} is no regular file; take it out of the folder")


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(_text(path).splitlines())
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in ("path", "label") if name not in header]
        if missing:
            raise DataError(f"{path} has no column {missing[0]!r}; its first line must name {', '.join(COLUMNS)}")
        for name in header:
            # other columns are people's own, but a misspelt one would silently change the split
            close = get_close_matches(name, COLUMNS, n=1, cutoff=0.75)
            if name not in COLUMNS and close and close[0] not in header:
                raise DataError(f"{path} has a column {name!r}; did you mean {close[0]!r}?")
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    except csv.Error as problem:
        raise DataError(f"{path}, line {reader.line_num}: not a CSV file ({problem})") from None


def _label(text: str, place: str) -> int:
    word = text.lower()
    if word in NORMAL_WORDS | ANOMALOUS_WORDS:
        return int(word in ANOMALOUS_WORDS)
    raise DataError(f"{place}: unknown label {text!r}; write 0 or normal, 1 or anomalous")


def _existing(root: Path, text: str, place: str) -> str:
    # normalised by its letters, not resolved: a linked data folder keeps working
    full = Path(os.path.normpath(root / text))
    if not full.is_relative_to(root):
        raise DataError(f"{place}: {text!r} leaves {root}; paths must stay inside the CSV file's folder")
    with looking_at(full):
        there = full.is_file()
    if not there:
        raise DataError(f"{place}: there is no file {text!r} in {root}")
    refuse_unprintable(text)
    return full.relative_to(root).as_posix()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"cannot read {path}: {problem}") from None


def _types() -> str:
    return ", ".join(suffix[1:] for suffix in SUFFIXES)
