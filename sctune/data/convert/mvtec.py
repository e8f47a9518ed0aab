"""MVTec AD: 15 categories that are already in the target layout; copied byte for byte and checked."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sctune.data import layouts
from sctune.data.convert.plan import Counts, RawImage, RawPlan, RawSet, normals_first
from sctune.data.convert.raw import folders, relative, unnested
from sctune.data.licences import KNOWN

CARPET = {"color": 19, "cut": 17, "hole": 17, "metal_contamination": 17, "thread": 19}
METAL_NUT = {"bent": 25, "color": 22, "flip": 23, "scratch": 23}

EXPECTED = {
    "bottle": Counts(209, 20, 63),
    "cable": Counts(224, 58, 92),
    "capsule": Counts(219, 23, 109),
    "carpet": Counts(280, 28, 89, CARPET),
    "grid": Counts(264, 21, 57),
    "hazelnut": Counts(391, 40, 70),
    "leather": Counts(245, 32, 92),
    "metal_nut": Counts(220, 22, 93, METAL_NUT),
    "pill": Counts(267, 26, 141),
    "screw": Counts(320, 41, 119),
    "tile": Counts(230, 33, 84),
    "toothbrush": Counts(60, 12, 30),
    "transistor": Counts(213, 60, 40),
    "wood": Counts(247, 19, 60),
    "zipper": Counts(240, 32, 119),
}
"""Images by category: train/good, test/good, anomalous (METHODS 6)."""


def is_raw(folder: Path) -> bool:
    """One category, or a folder with at least one of the 15."""
    return _category(folder) is not None or any(_category(below) for below in folders(folder))


def plan(root: Path) -> RawPlan:
    """root: the folder of the categories, or one category alone (then only that one is expected)."""
    alone = _category(root)
    base = alone or root
    places = {root.name: alone} if alone else {below.name: unnested(below) for below in folders(root)}
    images: list[RawImage] = []
    missing: list[str] = []
    for category, place in places.items():
        # a folder of another name in this layout is taken along, so that the counts report it
        for file in layouts.read_mvtec(place).files if layouts.is_mvtec(place) else []:
            name = file.path.split("/", 2)[2]
            masks = tuple(relative(place / mask, base) for mask in file.masks)
            source = relative(place / file.path, base)
            images.append(RawImage(name, source, file.kind, file.split, category, masks=masks))
            if file.label and not masks:
                stem = PurePosixPath(name).with_suffix("").as_posix()
                missing.append(relative(place / "ground_truth" / file.kind / f"{stem}_mask.png", base))
    expected = (root.name,) if alone else tuple(EXPECTED)
    return RawPlan(base, normals_first(images), expected, tuple(missing))


def _category(folder: Path) -> Path | None:
    """Where the layout of one of the 15 categories begins, by the folder's name; None for other folders."""
    place = unnested(folder)
    return place if folder.name in EXPECTED and layouts.is_mvtec(place) else None


MVTEC = RawSet(
    name="mvtec",
    title="MVTec AD",
    licence=KNOWN["mvtec"].licence,
    attribution=KNOWN["mvtec"].attribution or "",
    page="https://www.mvtec.com/company/research/datasets/mvtec-ad",
    evidence="counts: published totals; licence: as usually cited, read it on the page",
    layout="CATEGORY/train/good, CATEGORY/test/TYPE, CATEGORY/ground_truth/TYPE, or one category alone",
    expected={category: (counts,) for category, counts in EXPECTED.items()},
    is_raw=is_raw,
    plan=plan,
    remarks=("toothbrush has one anomaly type only: no hard setting",),
)
