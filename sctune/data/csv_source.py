"""A CSV file as a data set: one row for each image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from sctune.data.csv_text import CsvText, read_csv_text
from sctune.data.image_file import GOOD, UNNAMED, ImageFile, Reading
from sctune.data.manifest import refuse_unfinished
from sctune.data.mask_names import without_masks
from sctune.data.places import looking_at, refuse_unprintable
from sctune.data.walk import SUFFIXES, read_types
from sctune.data.words import TRUTH_LABELS, folded, is_good_folder, label_of
from sctune.errors import DataError

COLUMNS = ("path", "label", "type", "group", "mask", "split")
REQUIRED = COLUMNS[:2]
MASKS_BETWEEN = "|"
"""Between several masks of one image; no Windows path holds it, and hardly any other."""

_OTHER_NAMES = {
    "path": "file files filename file_name filepath file_path image images img image_path img_path image_name name",
    "label": "labels class classes target y result anomalous anomaly is_anomaly is_anomalous defect is_defect status",
    "type": "kind class category defect_type anomaly_type defect_class",
    "group": "unit part part_id unit_id serial lot batch",
    "mask": "mask_path mask_file ground_truth gt_path",
    "split": "subset partition fold",
}
"""How other tools call the columns."""
_NO_TYPE = frozenset({"", "-", "none", "n/a", "na", "nan", "null"})


def read_csv(path: Path) -> Reading:
    """A CSV file with a header; only `path` and `label` are required, paths are relative to the CSV's folder.

    Separator, encoding and words for labels as `docs/data.md` says. Raises DataError, naming file and line, for what
    cannot be used: among them a column, or an image, that is there twice, and a type that contradicts its label.
    """
    text = read_csv_text(path, COLUMNS)
    notes = [*text.notes, *_checked_header(path, text.header)]
    files: list[ImageFile] = []
    seen, truths = _Seen(path), set[str]()
    for line, row in _rows(text):
        file = _image(path.parent, row, f"{path}, line {line}")
        seen.add(file, line)
        files.append(file)
        truths |= {folded(row["label"])} & TRUTH_LABELS
    if not files:
        raise DataError(f"{path} has a header and no rows")
    if truths:
        notes.append(f"{path}: label True is read as anomalous, False as normal")
    refuse_unfinished(*{(path.parent / file.path).parent for file in files})
    return Reading(files, [*notes, *without_masks(path, files)])


def existing(root: Path, text: str, place: str) -> str:
    """POSIX path below root of a file that a table names; place: where it stands. Raises DataError."""
    # normalised by its letters, not resolved: a linked data folder keeps working
    full = Path(os.path.normpath(root / text))
    if not full.is_relative_to(root):
        raise DataError(f"{place}: {text!r} leaves {root}; paths must stay inside the CSV file's folder")
    with looking_at(full):
        there = full.is_file()
    if not there:
        raise DataError(f"{place}: there is no file {text!r} in {root}{_spelt(root, text)}")
    refuse_unprintable(text)
    return full.relative_to(root).as_posix()


class _Seen:
    """The rows by the file that they mean, however it is spelt or linked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[object, tuple[int, ImageFile]] = {}

    def add(self, file: ImageFile, line: int) -> None:
        """Raises DataError for a file that has a row already under this path, or under another label or type."""
        with looking_at(self._path.parent / file.path):
            found = (self._path.parent / file.path).stat()
        before, other = self._rows.setdefault((found.st_dev, found.st_ino), (line, file))
        if before == line:
            return
        names = file.path if file.path == other.path else f"{other.path} and {file.path}, one file"
        if (file.label, file.kind) != (other.label, other.kind):
            raise DataError(
                f"{self._path}: {names!r} is listed 2 times, in line {before} as {_meaning(other)} and in line {line} "
                f"as {_meaning(file)}; keep the right line"
            )
        if file.path == other.path:
            raise DataError(
                f"{self._path}: {names!r} is listed 2 times, in line {before} and in line {line}; each image may "
                "occur once"
            )


def _meaning(file: ImageFile) -> str:
    return "normal" if file.label == 0 else f"anomalous ({file.kind})"


def _rows(text: CsvText) -> Iterator[tuple[int, dict[str, str]]]:
    empty = dict.fromkeys(COLUMNS, "")
    for line, cells in text.rows:
        yield line, empty | dict(zip(text.header, cells, strict=False))


def _image(root: Path, row: dict[str, str], place: str) -> ImageFile:
    image = existing(root, row["path"], place)
    if not image.lower().endswith(SUFFIXES):
        raise DataError(f"{place}: {image!r} is no image; {read_types()} are read")
    label = label_of(row["label"])
    if label is None:
        raise DataError(
            f"{place}: unknown label {row['label']!r}; write 0, normal, ok, good or pass, else 1, anomalous, nok, ng, "
            "bad or fail (kinds of defects go into the column type)"
        )
    masks = _masks(root, row["mask"], place)
    split: Literal["train", "test"] | None = None
    if folded(row["split"]) in ("train", "test"):
        split = "train" if folded(row["split"]) == "train" else "test"
    elif row["split"]:
        raise DataError(f"{place}: split {row['split'].lower()!r} must be train, test or empty")
    return ImageFile(
        path=image,
        label=label,
        kind=_kind(row, label, place),
        group=row["group"],
        split=split,
        mask=masks[0] if masks else None,
        more_masks=tuple(masks[1:]),
    )


def _masks(root: Path, text: str, place: str) -> list[str]:
    """Paths of the masks of one row, each once; a file whose own name holds the separator is one mask."""
    # os.path's own, since the cell as a whole may be longer than a name can be
    is_one = MASKS_BETWEEN not in text or os.path.isfile(root / text)
    names = [text] if is_one else text.split(MASKS_BETWEEN)
    return list(dict.fromkeys(existing(root, name.strip(), place) for name in names if name.strip()))


def _kind(row: dict[str, str], label: int, place: str) -> str:
    kind = row["type"]
    says_good = is_good_folder(kind)
    contrary = says_good if label else not says_good and folded(kind) not in _NO_TYPE
    if contrary:
        raise DataError(
            f"{place}: label {row['label']!r} contradicts type {kind!r}; a normal image has no type, or good, and an "
            "anomalous one has the kind of its defect"
        )
    return GOOD if label == 0 else kind or UNNAMED


def _checked_header(path: Path, header: list[str]) -> list[str]:
    """Notes about columns that are not read; raises DataError where one is missing, twice there or misspelt."""
    for name in COLUMNS:
        places = [str(number) for number, other in enumerate(header, start=1) if other == name]
        if len(places) > 1:
            raise DataError(
                f"{path}, line 1: the column {name!r} is there {len(places)} times (columns {' and '.join(places)}); "
                "keep one of them"
            )
    for name in REQUIRED:
        if name not in header:
            others = [other for other in header if other not in COLUMNS]
            meant = [*_called_so(name, others), *get_close_matches(name, others, n=1, cutoff=0.6)]
            hint = f"; {meant[0]!r} may be meant: call it {name!r}" if meant else ""
            raise DataError(f"{path} has no column {name!r}{hint}; its first line must name {', '.join(COLUMNS)}")
    notes = []
    for name in header:
        # other columns are people's own, but a misspelt one would silently change the split
        close = get_close_matches(name, COLUMNS, n=1, cutoff=0.75)
        if name not in COLUMNS and close and close[0] not in header:
            raise DataError(f"{path} has a column {name!r}; did you mean {close[0]!r}?")
    for name in COLUMNS[2:]:
        meant = [] if name in header else _called_so(name, header)
        if meant:
            notes.append(f"{path}: the column {meant[0]!r} is not read; if it holds the {name}, call it {name!r}")
    return notes


def _called_so(name: str, header: list[str]) -> list[str]:
    """The columns that other tools call so where sctune says `name`."""
    listed = _OTHER_NAMES[name].split()
    return [other for other in header if other.replace(" ", "_").replace("-", "_") in listed]


def _spelt(root: Path, text: str) -> str:
    """A hint where a file of this name is there in other letters: capital ones, or blanks."""
    full = Path(os.path.normpath(root / text))
    with looking_at(full):
        names = os.listdir(full.parent) if full.parent.is_dir() else []
    near = [name for name in names if folded(name) == folded(full.name)]
    return f"; did you mean {near[0]!r}?" if near else ""
