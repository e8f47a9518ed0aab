"""AITEX: fabric strips of 4096 x 256 pixels, cut into square tiles."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sctune.data.convert.plan import Box, Counts, RawImage, RawPlan, RawSet, normals_first
from sctune.data.convert.raw import child, files, folders, read_mask, relative, some, unnested
from sctune.data.decode import open_image
from sctune.data.image_file import GOOD
from sctune.data.licences import KNOWN
from sctune.errors import DataError

TILE = 256
WIDTH = 4096
WHITE = 250
"""Grey value from which on a pixel counts as white margin."""

CODES = {
    "002": "Broken_end",
    "006": "Broken_yarn",
    "010": "Broken_pick",
    "016": "Weft_curling",
    "019": "Fuzzyball",
    "022": "Cut_selvage",
    "023": "Crease",
    "025": "Warp_ball",
    "027": "Knots",
    "029": "Contamination",
    "030": "Nep",
    "036": "Weft_crack",
}
NO_MASK = frozenset({"0100_025_08"})
"""Strips that come without a usable mask."""

STRIP = re.compile(r"\d{4}_(\d{3})_\d{2}")
MASK = re.compile(r"(\d{4}_\d{3}_\d{2})_mask(\d*)", re.IGNORECASE)


@dataclass
class _Found:
    """What reading the strips brings together."""

    images: list[RawImage] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    margins: list[str] = field(default_factory=list)
    clean: int = 0


def is_raw(folder: Path) -> bool:
    return child(folder, "Defect_images") is not None and child(folder, "NODefect_images") is not None


def plan(root: Path) -> RawPlan:
    """Normal tiles from the clean strips only; of a defective strip the tiles whose mask has a pixel that is not zero.

    The paper counts 140 clean strips, a recount 141, which gives its 2256 tiles: both are accepted and reported.
    """
    places = {name: child(root, name) for name in ("NODefect_images", "Defect_images", "Mask_images")}
    lacking = [name for name, place in places.items() if place is None]
    if lacking:
        raise DataError(f"{root} has no folder {lacking[0]}; unpack the whole AITEX archive")
    clean, defective, masks = (place for place in places.values() if place is not None)
    found = _Found()
    strips = _clean_strips(clean)
    for name, path in strips:
        found.images += _normal_tiles(root, name, path, found)
    found.notes.append(f"{len(strips)} clean strips (140 in the paper's text, 141 in a recount; both are accepted)")
    by_strip = _masks(masks)
    for path in files(defective, ".png"):
        if not STRIP.fullmatch(path.stem):
            found.notes.append(f"{relative(path, root)} is left out: its name is not nnnn_ddd_ff")
        elif path.stem in NO_MASK:
            found.notes.append(f"{path.stem} is left out: it has no usable mask")
        elif lost := _lost_mask(path.stem, by_strip.get(path.stem, [])):
            found.missing.append(relative(masks / lost, root))
        else:
            found.images += _defect_tiles(root, path, by_strip[path.stem], found)
    found.notes.append(f"clean tiles of defective strips left out: {found.clean}")
    if found.margins:
        found.notes.append(f"white margins are kept in {some(found.margins)}")
    return RawPlan(root, normals_first(found.images), missing_masks=tuple(found.missing), notes=tuple(found.notes))


def tile_boxes(width: int) -> list[Box]:
    """Squares from left to right; the last one may reach beyond the width by less than half of it."""
    whole, rest = divmod(width, TILE)
    count = whole + (2 * rest >= TILE)
    return [(number * TILE, 0, (number + 1) * TILE, TILE) for number in range(count)]


def _normal_tiles(root: Path, name: str, path: Path, found: _Found) -> list[RawImage]:
    size = _look_at(path, name, found)
    return [
        RawImage(f"{name}_{number:02d}.png", relative(path, root), GOOD, unit=name, box=box)
        for number, box in enumerate(tile_boxes(size[0]))
    ]


def _defect_tiles(root: Path, path: Path, masks: list[Path], found: _Found) -> list[RawImage]:
    name = path.stem
    match = STRIP.fullmatch(name)
    code = match[1] if match else ""
    if code not in CODES:
        raise DataError(f"{path}: unknown defect code {code}; AITEX has {', '.join(CODES)}")
    size = _look_at(path, name, found)
    names = tuple(relative(mask, root) for mask in masks)
    if len(names) > 1:
        found.notes.append(f"{name}: {len(names)} masks are joined")
    narrow = size[0] < WIDTH
    mask = read_mask(root, names, relative(path, root), size, any_width=narrow)
    if narrow:
        _note_widths(root, names, name, size[0], found)
    tiles = []
    for number, box in enumerate(tile_boxes(size[0])):
        if mask[:, box[0] : box[2]].any():
            tile = f"{name}_{number:02d}.png"
            tiles.append(RawImage(tile, relative(path, root), CODES[code], "test", unit=name, box=box, masks=names))
        else:
            found.clean += 1
    if not tiles:
        found.notes.append(f"{name} gives no tile: its mask marks nothing in one")
    return tiles


def _note_widths(root: Path, masks: tuple[str, ...], name: str, width: int, found: _Found) -> None:
    """Notes down masks that are not as wide as their narrow strip."""
    for mask in masks:
        other = open_image(root / mask).width
        if other != width:
            end = "cut" if other > width else "filled up with zeros"
            found.notes.append(f"{name}: {mask} is {other} pixels wide, the strip {width}; the mask is {end}")


def _look_at(path: Path, name: str, found: _Found) -> tuple[int, int]:
    """Size of a strip; notes down other widths and white margins. Raises DataError for other heights."""
    image = open_image(path)
    if image.height != TILE:
        raise DataError(f"{path} is {image.width} x {image.height} pixels; strips of AITEX are {TILE} high")
    if image.width != WIDTH:
        rest = image.width % TILE
        end = (
            "" if not rest else ", the last tile is filled up by mirroring" if 2 * rest >= TILE else ", the rest is cut"
        )
        found.notes.append(f"{name} is {image.width} pixels wide instead of {WIDTH}{end}")
    other = np.flatnonzero((np.asarray(image.convert("L")) < WHITE).any(axis=0))
    left, right = (int(other[0]), image.width - 1 - int(other[-1])) if len(other) else (image.width, 0)
    if left or right:
        found.margins.append(f"{name} ({left} columns left, {right} right)")
    return image.size


def _clean_strips(place: Path) -> list[tuple[str, Path]]:
    """(FABRIC_STRIP, path) of the clean strips, sorted by that name; strips may also lie without a fabric's folder."""
    strips = [(path.stem, path) for path in files(place, ".png")]
    for fabric in folders(place):
        strips += [(f"{fabric.name}_{path.stem}", path) for path in files(unnested(fabric), ".png")]
    return sorted(strips)


def _masks(place: Path) -> dict[str, list[Path]]:
    masks: dict[str, list[Path]] = {}
    for path in files(place, ".png"):
        match = MASK.fullmatch(path.stem)
        if match:
            masks.setdefault(match[1], []).append(path)
    return masks


def _lost_mask(strip: str, masks: list[Path]) -> str | None:
    """Name of the first mask file that is not there: numbered ones come in twos at least. None where all are."""
    if not masks:
        return f"{strip}_mask.png"
    ends = (MASK.fullmatch(path.stem) for path in masks)
    numbers = {int(match[2]) for match in ends if match and match[2]}
    wanted = range(1, max(*numbers, 2) + 1) if numbers else range(0)
    lost = next((number for number in wanted if number not in numbers), None)
    return None if lost is None else f"{strip}_mask{lost}.png"


def _counts(strips: int) -> Counts:
    tiles = strips * WIDTH // TILE
    held = -(-tiles // 4)
    return Counts(tiles - held, held, 183, dict.fromkeys(CODES.values()))


AITEX = RawSet(
    name="aitex",
    title="AITEX",
    licence=KNOWN["aitex"].licence,
    attribution=KNOWN["aitex"].attribution or "",
    page="https://www.aitex.es/afid/",
    evidence="2256 normal tiles of 141 strips: counted (140 give 2240); 183 anomalies: as recalled; licence unclear",
    layout="NODefect_images/FABRIC/*.png, Defect_images/nnnn_ddd_ff.png, Mask_images/nnnn_ddd_ff_mask.png",
    expected={"": (_counts(140), _counts(141))},
    is_raw=is_raw,
    plan=plan,
    unit="strip",
    unit_pattern=r"([^/]+)_\d\d\.png$",
    remarks=("0100_025_08 is left out: it has no usable mask",),
)
