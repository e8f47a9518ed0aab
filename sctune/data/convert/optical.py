"""Optical (DAGM 2007): ten textures with generated defects and weak masks; copied byte for byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sctune.data.convert.plan import Counts, RawImage, RawPlan, RawSet, normals_first
from sctune.data.convert.raw import child, files, folders, relative, some, unnested
from sctune.data.image_file import GOOD
from sctune.data.licences import KNOWN
from sctune.errors import DataError

CLASS = re.compile(r"Class(\d+)", re.IGNORECASE)
PARTS = ("Train", "Test")
FEW, MANY = 150, 300
"""Anomalies of Class1 to Class6, and of Class7 to Class10."""


@dataclass(frozen=True)
class LabelRow:
    """A line of Labels.txt: image file, whether it is defective, and its mask's file (None where it has none)."""

    image: str
    defective: bool
    mask: str | None


def is_raw(folder: Path) -> bool:
    return any(child(place, part) for place in _classes(folder).values() for part in PARTS)


def plan(root: Path) -> RawPlan:
    """Train and Test are pooled; the normals of all classes are one pool; defects are of type Class1 to Class10."""
    images: list[RawImage] = []
    missing: list[str] = []
    notes = ["Class1 to Class10 are called Class0 to Class9 by the public converter"]
    for number, place in sorted(_classes(root).items()):
        for part in PARTS:
            folder = child(place, part)
            if folder is None:
                raise DataError(f"{place} has no folder {part}; unpack the whole archive")
            found = _part(root, folder, f"Class{number}", part, missing, notes)
            images += found
    return RawPlan(root, normals_first(images), missing_masks=tuple(missing), notes=tuple(notes))


def read_labels(path: Path) -> list[LabelRow]:
    """Label/Labels.txt: first a line `1`, then id, flag, image, a number and the mask's file, tabs between.

    Raises DataError, naming the line, for what does not read so.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"cannot read {path}: {problem}; unpack the archive again") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip() for cell in line.strip().split("\t")]
        if cells == [""] or (number == 1 and len(cells) == 1):
            continue
        if len(cells) < 3 or cells[1] not in ("0", "1") or not cells[2]:
            raise DataError(f"{path}, line {number}: {line!r} must be id, 0 or 1, image, a number, mask, with tabs")
        named = len(cells) > 4 and cells[1] == "1" and cells[4] not in ("", "0")
        rows.append(LabelRow(cells[2], cells[1] == "1", cells[4] if named else None))
    return rows


def _part(root: Path, folder: Path, kind: str, part: str, missing: list[str], notes: list[str]) -> Iterator[RawImage]:
    """Images of ClassN/Train or ClassN/Test; adds to missing and notes."""
    labels = child(folder, "Label")
    table = next((path for path in files(labels, ".txt") if path.stem.lower() == "labels"), None) if labels else None
    if labels is None or table is None:
        raise DataError(f"{folder} has no Label/Labels.txt; unpack the whole archive")
    pictures = {path.name.lower(): path for path in files(folder, ".png")}
    masks = {path.name.lower(): path for path in files(labels, ".png")}
    rows = read_labels(table)
    unlisted = sorted(pictures.keys() - {row.image.lower() for row in rows})
    if unlisted:
        notes.append(f"{relative(folder, root)}: not in Labels.txt, left out: {some(unlisted)}")
    for row in sorted(rows, key=lambda row: row.image):
        path = pictures.get(row.image.lower())
        if path is None:
            raise DataError(f"{folder} has no {row.image}, which {table} lists; unpack the archive again")
        name = f"{kind}_{part}_{path.name}"
        if not row.defective:
            yield RawImage(name, relative(path, root), GOOD)
            continue
        wanted = row.mask or f"{path.stem}_label.PNG"
        mask = masks.get(wanted.lower())
        if mask is None:
            missing.append(relative(labels / wanted, root))
        yield RawImage(name, relative(path, root), kind, "test", masks=() if mask is None else (relative(mask, root),))


def _classes(root: Path) -> dict[int, Path]:
    found = ((CLASS.fullmatch(folder.name), folder) for folder in folders(root))
    return {int(match[1]): unnested(folder) for match, folder in found if match}


OPTICAL = RawSet(
    name="optical",
    title="Optical (DAGM 2007)",
    licence=KNOWN["optical"].licence,
    attribution=KNOWN["optical"].attribution or "",
    page="https://conferences.mpi-inf.mpg.de/dagm/2007/prizes.html",
    evidence="counts: counted and derived; licence unclear",
    layout="Class1 to Class10, each with Train and Test, in them NNNN.PNG and Label/Labels.txt",
    expected={"": (Counts(10500, 3500, 2100, {f"Class{n}": FEW if n < 7 else MANY for n in range(1, 11)}),)},
    is_raw=is_raw,
    plan=plan,
    remarks=("also at https://zenodo.org/records/12750201", "masks are rough ellipses"),
)
