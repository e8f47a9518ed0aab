"""Small raw folders that follow the archives of the paper's data sets to the letter, their traps included."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
FABRICS = {"2306881-210020u": "05", "2311694-2040n7u": "00"}
WEAVE = np.tile(np.random.default_rng(0).integers(40, 200, (256, 64), dtype=np.uint8), (1, 64))


def noise(name: str, height: int, width: int, bands: int = 0) -> Pixels:
    """Pixels that depend on the name only."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    shape = (height, width, bands) if bands else (height, width)
    return np.random.default_rng(seed).integers(0, 240, shape, dtype=np.uint8)


def save(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {".jpg": "JPEG", ".bmp": "BMP"}.get(path.suffix.lower(), "PNG")
    Image.fromarray(pixels).save(path, kind, **({"compress_level": 1} if kind == "PNG" else {}))


def spot(height: int, width: int, rows: slice, columns: slice = slice(None), value: int = 255) -> Pixels:
    """A mask: zero but for one rectangle."""
    mask = np.zeros((height, width), np.uint8)
    mask[rows, columns] = value
    return mask


def make_mvtec(
    root: Path, categories: tuple[str, ...] = ("carpet", "toothbrush"), counts: tuple[int, ...] = (4, 2, 2)
) -> Path:
    """counts: train/good, test/good and anomalies of each of two types (one type for toothbrush)."""
    train, good, bad = counts
    for category in categories:
        kinds = ("defective",) if category == "toothbrush" else ("color", "hole")
        place = root / category
        for folder, number in {
            "train/good": train,
            "test/good": good,
            **{f"test/{kind}": bad for kind in kinds},
        }.items():
            for index in range(number):
                save(place / folder / f"{index:03d}.png", noise(f"{category}{folder}{index}", 9, 9, 3))
                if folder.startswith("test/") and not folder.endswith("good"):
                    mask = place / folder.replace("test", "ground_truth") / f"{index:03d}_mask.png"
                    save(mask, spot(9, 9, slice(2, 5)))
        (place / "license.txt").write_text("CC BY-NC-SA 4.0")
        (place / "readme.txt").write_text(category)
    return root


def make_elpv(root: Path, below: str = "", cells: int = 40) -> Path:
    """Probabilities in turn 0, 0, 1/3, 2/3, 1; mono and poly in turn."""
    lines = []
    for number in range(1, cells + 1):
        name = f"images/cell{number:04d}.png"
        save(root / below / name, noise(name, 6, 6))
        probability = ("0.0", "0.0", "0.3333333333333333", "0.6666666666666666", "1.0")[number % 5]
        lines.append(f"{name}  {probability}    {('mono', 'poly')[number % 2]}\n")
    # not sorted: the order of the file decides
    (root / below / "labels.csv").write_text("".join(lines[::2] + lines[1::2]))
    return root


def make_sdd(root: Path, folders: int = 3, parts: int = 8, heights: tuple[int, ...] = (31, 32, 33)) -> Path:
    """Part 0 of each folder has a defect in its middle third, part 1 of the first folder one across two thirds."""
    for folder in range(1, folders + 1):
        for part in range(parts):
            place = root / f"kos{folder:02d}"
            height = heights[part % len(heights)]
            save(place / f"Part{part}.jpg", noise(f"{folder}.{part}", height, 20))
            label = np.zeros((height, 20), np.uint8)
            if part == 0:
                label = spot(height, 20, slice(height // 3 + 2, height // 3 + 4))
            elif part == 1 and folder == 1:
                edge = 2 * height // 3
                label = spot(height, 20, slice(edge - 1, edge + 1), slice(3, 5), value=1)
            save(place / f"Part{part}_label.bmp", label)
    return root


def make_aitex(root: Path, strips: int = 2) -> Path:
    """Two fabrics with clean strips; five defective strips, of which three are the well-known odd ones."""
    number = 0
    for fabric, code in FABRICS.items():
        for _ in range(strips):
            number += 1
            save(root / "NODefect_images" / fabric / f"{number:04d}_000_{code}.png", np.roll(WEAVE, number, axis=1))
    masks = {
        "0001_002_00": (4096, {"": spot(256, 4096, slice(9, 12), slice(250, 260))}),
        "0044_019_04": (4096, {"1": spot(256, 4096, slice(9, 12), slice(0, 9)),
                               "2": spot(256, 4096, slice(9, 12), slice(1024, 1030))}),
        "0094_027_05": (3500, {"": spot(256, 3500, slice(9, 12), slice(3490, 3499))}),
        "0097_030_03": (4096, {"1": spot(256, 4096, slice(1, 2), slice(300, 301)),
                               "2": spot(256, 4096, slice(9, 12), slice(310, 320))}),
        "0100_025_08": (4096, {}),
    }  # fmt: skip
    for index, (name, (width, images)) in enumerate(masks.items()):
        save(root / "Defect_images" / f"{name}.png", np.roll(WEAVE, -index, axis=1)[:, :width])
        for end, mask in images.items():
            save(root / "Mask_images" / f"{name}_mask{end}.png", mask)
    return root


def make_optical(root: Path, classes: tuple[int, ...] = tuple(range(1, 11)), nested: bool = False) -> Path:
    """Per class and part three images, the second one defective; Labels.txt as it comes, line ends of Windows."""
    for number in classes:
        for part, first in (("Train", 576), ("Test", 1)):
            place = root / f"Class{number}" / (f"Class{number}" if nested else "") / part
            lines = ["1"]
            for index in range(first, first + 3):
                defective = index == first + 1
                save(place / f"{index:04d}.PNG", noise(f"{number}{part}{index}", 8, 8))
                if defective:
                    save(place / "Label" / f"{index:04d}_label.PNG", spot(8, 8, slice(1, 4)))
                label = f"{index:04d}_label.PNG" if defective else "0"
                lines.append(f"{index}\t{int(defective)}\t{index:04d}.PNG\t0\t{label}")
            (place / "Label" / "Labels.txt").write_text("\r\n".join(lines) + "\r\n", newline="")
    return root


def make_mastcam(root: Path, side: int = 8) -> Path:
    """float64 arrays of six bands; one image of test_novel lies in two classes, `all` holds copies of everything."""
    for folder, number in {"train_typical": 6, "validation_typical": 2, "test_typical": 3}.items():
        for index in range(number):
            save_npy(root / folder / f"{folder}_{index}.npy", side)
    novel = root / "test_novel"
    for kind, names in {
        "bedrock": ("sol1", "sol2", "sol3"),
        "veins": ("sol2", "sol4"),
        "edge_cases": ("sol5",),
    }.items():
        for name in names:
            save_npy(novel / kind / f"{name}.npy", side)
            (novel / "all").mkdir(exist_ok=True)
            shutil.copyfile(novel / kind / f"{name}.npy", novel / "all" / f"{name}.npy")
    return root


def save_npy(path: Path, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, noise(path.stem, side, side, 6).astype(np.float64))


MAKERS: dict[str, Callable[[Path], Path]] = {
    "mvtec": make_mvtec,
    "sdd": make_sdd,
    "aitex": make_aitex,
    "elpv": make_elpv,
    "optical": make_optical,
    "mastcam": make_mastcam,
}


@pytest.fixture
def makers() -> dict[str, Callable[..., Path]]:
    """Name of a data set -> what makes a small raw folder of it."""
    return dict(MAKERS)


@pytest.fixture(scope="session")
def raw_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of a data set -> a small raw folder that no test may change."""
    root = tmp_path_factory.mktemp("raw")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture
def prepared_sdd(raw_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A small prepared SDD folder that a test may spoil."""
    from sctune.data.convert import prepare

    prepare("sdd", raw_folders["sdd"], tmp_path / "prepared", allow_counts=True)
    return tmp_path / "prepared"
