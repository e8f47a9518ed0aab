"""KolektorSDD: images of commutator parts, cut into thirds along their height."""

from __future__ import annotations

import re
from pathlib import Path

from sctune.data.convert.plan import Box, Counts, RawImage, RawPlan, RawSet, normals_first
from sctune.data.convert.raw import files, folders, read_mask, relative, unnested
from sctune.data.decode import open_image
from sctune.data.image_file import GOOD
from sctune.data.licences import KNOWN
from sctune.errors import DataError

DEFECT = "defect"
FOLDER = re.compile(r"kos\d+", re.IGNORECASE)
PART = re.compile(r"(Part\d+)\.(jpg|jpeg|png|bmp)", re.IGNORECASE)


def is_raw(folder: Path) -> bool:
    return any(_parts(below) for below in _folders(folder)[:1])


def plan(root: Path) -> RawPlan:
    """Cut at floor(H/3) and floor(2H/3); a third is anomalous where its mask has a pixel that is not zero."""
    images: list[RawImage] = []
    missing: list[str] = []
    for folder in _folders(root):
        for part in _parts(folder):
            label = next((file for file in files(folder, ".bmp", ".png") if _is_label(file, part)), None)
            if label is None:
                missing.append(relative(part.with_name(f"{part.stem}_label.bmp"), root))
            else:
                images += _thirds(root, part, label)
    if not images:
        raise DataError(f"{root}: no part has its label file, first {missing[0]}; unpack the archive again")
    mixed = sorted({str(image.unit) for image in images if image.kind == DEFECT})
    notes = [f"defective parts: {len(mixed)}"] if mixed else []
    return RawPlan(root, normals_first(images), missing_masks=tuple(missing), notes=tuple(notes))


def _thirds(root: Path, part: Path, label: Path) -> list[RawImage]:
    width, height = open_image(part).size
    if height < 3:
        raise DataError(f"{part} is {height} pixels high and cannot be cut in three; get the file again")
    mask = read_mask(root, [relative(label, root)], relative(part, root), (width, height))
    unit = f"{_kos(part.parent).name}_{part.stem}"
    edges = (0, height // 3, 2 * height // 3, height)
    images = []
    for number in range(3):
        box: Box = (0, edges[number], width, edges[number + 1])
        defective = bool(mask[box[1] : box[3]].any())
        images.append(
            RawImage(
                name=f"{unit}_{number}.png",
                source=relative(part, root),
                kind=DEFECT if defective else GOOD,
                split="test" if defective else None,
                unit=unit,
                box=box,
                masks=(relative(label, root),) if defective else (),
            )
        )
    return images


def _kos(folder: Path) -> Path:
    # kos01/kos01 of a nested archive is kos01
    return folder.parent if folder.parent.name == folder.name else folder


def _folders(root: Path) -> list[Path]:
    return [unnested(folder) for folder in folders(root) if FOLDER.fullmatch(folder.name)]


def _parts(folder: Path) -> list[Path]:
    return [file for file in files(folder, ".jpg", ".jpeg", ".png", ".bmp") if PART.fullmatch(file.name)]


def _is_label(file: Path, part: Path) -> bool:
    return file.stem.lower() == f"{part.stem}_label".lower()


SDD = RawSet(
    name="sdd",
    title="KolektorSDD",
    licence=KNOWN["sdd"].licence,
    attribution=KNOWN["sdd"].attribution or "",
    page="https://www.vicos.si/resources/kolektorsdd/",
    evidence="1197 thirds: counted; 54 of them defective: as recalled, the published 286 fits; licence: its makers'",
    layout="kos01 to kos50, each with PartN.jpg and PartN_label.bmp",
    expected={"": (Counts(857, 286, 54, {DEFECT: None}),)},
    is_raw=is_raw,
    plan=plan,
    unit="part",
    unit_pattern=r"([^/]+)_\d\.png$",
)
