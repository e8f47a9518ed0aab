"""Mastcam: multispectral images of Mars as arrays; the first three bands become RGB pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sctune.data.convert.plan import Counts, RawImage, RawPlan, RawSet, normals_first
from sctune.data.convert.raw import child, files, folders, relative, some, unnested
from sctune.data.decode import npy_shape
from sctune.data.image_file import GOOD
from sctune.data.licences import KNOWN
from sctune.data.manifest import Split
from sctune.errors import DataError

CLASSES = (
    "bedrock", "broken-rock", "drill-hole", "drt", "dump-pile", "edge_cases", "float", "meteorite", "other", "scuff",
    "veins",
)  # fmt: skip
ALL = "all"
"""Folder of test_novel that holds copies of the images of all classes."""


BANDS = 3
"""Of an array's bands, those that make the picture."""


def is_raw(folder: Path) -> bool:
    return child(folder, "train_typical") is not None and child(folder, "test_novel") is not None


def plan(root: Path) -> RawPlan:
    """train_typical and test_typical are normal, the class folders of test_novel anomalous.

    test_novel/all holds copies and is left out, and so is validation_typical. An image that lies in two classes is
    there twice, as in the paper, but as one source unit: no split trains on one copy and tests on the other.
    """
    novel, held = child(root, "test_novel"), child(root, "test_typical")
    trained = child(root, "train_typical")
    if novel is None or held is None or trained is None:
        raise DataError(
            f"{root} needs the folders train_typical, test_typical and test_novel; unpack all four archives"
        )
    images = _normals(root, trained, "train") + _normals(root, held, "test")
    classes = {folder.name: files(unnested(folder), ".npy") for folder in folders(novel)}
    copies = classes.pop(ALL, [])
    times = Counter(path.name for paths in classes.values() for path in paths)
    for kind, paths in classes.items():
        for path in paths:
            group = path.stem if times[path.name] > 1 else None
            images.append(RawImage(f"{path.stem}.png", relative(path, root), kind, "test", group=group))
    for image in images:
        _check_shape(root / image.source)
    return RawPlan(root, normals_first(images), notes=tuple(_notes(root, images, times, len(copies))))


def _check_shape(path: Path) -> None:
    """Raises DataError for arrays of another order of axes, whose slices would pass for pictures."""
    shape = npy_shape(path)
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] < BANDS:
        raise DataError(f"{path} is an array of shape {list(shape)}; Mastcam has [64, 64, 6]: get the file again")


def _normals(root: Path, folder: Path, split: Split) -> list[RawImage]:
    return [RawImage(f"{path.stem}.png", relative(path, root), GOOD, split) for path in files(folder, ".npy")]


def _notes(root: Path, images: list[RawImage], times: Counter[str], copies: int) -> list[str]:
    notes = []
    twice = sorted(name for name, number in times.items() if number > 1)
    if twice:
        notes.append(f"in two classes, and one source unit each: {some(twice)}")
    if copies:
        notes.append(f"test_novel/all is left out: {copies} copies")
    spare = child(root, "validation_typical")
    if spare is not None:
        notes.append(f"validation_typical is left out: {len(files(spare, '.npy'))} images")
    names = {split: {image.name for image in images if image.kind == GOOD and image.split == split}
             for split in ("train", "test")}  # fmt: skip
    both = sorted(names["train"] & names["test"])
    if both:
        notes.append(f"both in train_typical and in test_typical: {some(both)}")
    return notes


MASTCAM = RawSet(
    name="mastcam",
    title="Mastcam",
    licence=KNOWN["mastcam"].licence,
    attribution=KNOWN["mastcam"].attribution or "",
    page="https://zenodo.org/records/3732485",
    evidence="counts: somebody else's, of the archives; licence: as usually cited, read it on the page",
    layout="train_typical, test_typical and test_novel/CLASS with .npy files",
    expected={"": (Counts(9302, 426, 451, dict.fromkeys(CLASSES)),)},
    is_raw=is_raw,
    plan=plan,
    remarks=("no masks", "64 x 64 pixels"),
)
