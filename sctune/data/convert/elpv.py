"""ELPV: solar cells with a probability of being defective; the installed package, a clone, or an old clone."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sctune.data import layouts
from sctune.data.convert.plan import Counts, RawImage, RawPlan, RawSet
from sctune.data.licences import KNOWN


def is_raw(folder: Path) -> bool:
    return layouts.elpv_folder(folder) is not None


def plan(root: Path) -> RawPlan:
    """Probability 0 is normal, 1 anomalous, the rest is left out; the normals are drawn in CSV order (METHODS 6)."""
    place = layouts.elpv_folder(root)
    assert place is not None, "only called for folders that is_raw accepts"
    listed = layouts.read_elpv(place)
    images = tuple(RawImage(PurePosixPath(file.path).name, file.path, file.kind, file.split) for file in listed)
    lines = len((place / "labels.csv").read_text(encoding="utf-8-sig").splitlines())
    left_out = f"{lines - len(images)} images with a probability between 0 and 1 are left out"
    return RawPlan(place, images, notes=(left_out,) if lines > len(images) else ())


ELPV = RawSet(
    name="elpv",
    title="ELPV",
    licence=KNOWN["elpv"].licence,
    attribution=KNOWN["elpv"].attribution or "",
    page="https://github.com/zae-bayern/elpv-dataset",
    evidence="counts: counted in labels.csv; licence: stated by its makers",
    layout="images/cellNNNN.png and labels.csv, or a clone of the repository",
    expected={"": (Counts(1131, 377, 715, {"mono": 313, "poly": 402}),)},
    is_raw=is_raw,
    plan=plan,
    remarks=(
        "pip install elpv-dataset brings the images: then no --source is needed",
        "mono and poly are types of cells, not of defects",
    ),
)
