"""`sctune data check` on ELPV: what it costs beside decoding, and which planted faults it finds.

python benchmarks/measure_check.py [--images 600] [--plant 5] [--size 160]: prints two tables as Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from sctune.data import images as cache_module
from sctune.data.catalog import DataSet, open_dataset
from sctune.data.check import DataCheck, check_data
from sctune.data.decode import Decoding
from sctune.data.images import ImageCache, file_digest

Plant = Callable[[Path, Path], None]
"""Makes a fault in an image, given its path and a folder for copies."""


def grey(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("L")


def changed(change: Callable[[Image.Image], Image.Image]) -> Plant:
    return lambda path, _: change(grey(path)).save(path)


def copied(save: Callable[[Path, Path], None]) -> Plant:
    return lambda path, other: save(path, other / f"{path.stem}-copy.png")


def wide(path: Path, _: Path) -> None:
    Image.fromarray(np.asarray(grey(path)).astype(np.uint16) * 16).save(path)


def clipped(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(picture).astype(float) * 3, 0, 255).astype(np.uint8))


def resaved(path: Path, target: Path) -> None:
    grey(path).save(target.with_suffix(".jpg"), quality=85)


def smaller(path: Path, target: Path) -> None:
    picture = grey(path)
    picture.resize((picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.LANCZOS).save(target)


FAULTS: dict[str, tuple[str, Plant]] = {
    "identical, other label": ("identical", copied(lambda path, target: shutil.copy(path, target) and None)),
    "saved again as JPEG, quality 85": ("near", copied(resaved)),
    "two thirds of the size": ("near", copied(smaller)),
    "constant": ("constant", changed(lambda picture: Image.new("L", picture.size, 90))),
    "overexposed": ("clipped", changed(clipped)),
    "blurred (radius 12)": ("blurred", changed(lambda picture: picture.filter(ImageFilter.GaussianBlur(12)))),
    "cut off": ("unreadable", lambda path, _: path.write_bytes(path.read_bytes()[:300]) and None),
    "another size": ("sizes", changed(lambda picture: picture.resize((picture.width, picture.height * 2)))),
}
EXPECTED_ELSEWHERE = {"another size": {"near"}, "two thirds of the size": {"sizes"}, "constant": set[str]()}


def small_elpv(root: Path, count: int) -> Path:
    """ok/ and nok/TYPE/ of the first images by name, half of them normal."""
    data = open_dataset("elpv")
    for file in (*data.normals[: count // 2], *data.anomalies[: count - count // 2]):
        folder = root / ("ok" if file.label == 0 else f"nok/{file.kind}")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(data.root / file.path, folder / Path(file.path).name)
    return root


def checked(root: Path, size: int) -> DataCheck:
    with tempfile.TemporaryDirectory() as cache:
        return check_data(open_dataset(str(root)), ImageCache(Path(cache)), Decoding(size))


def planted_table(images: int, plant: int, size: int) -> None:
    print("| planted | images | found | as | other findings |\n|---|---|---|---|---|")
    for name, (kind, make) in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = small_elpv(Path(folder) / "set", images)
            chosen = sorted((root / "ok").iterdir())[:: max(1, images // 2 // plant)][:plant]
            for path in chosen:
                make(path, root / "nok" / "mono")
            report = checked(root, size)
        found = sum(finding.count for finding in report.findings if finding.kind == kind)
        others = {finding.kind for finding in report.findings} - {kind} - EXPECTED_ELSEWHERE.get(name, set())
        count = found // 2 if kind == "identical" else found
        print(f"| {name} | {len(chosen)} | {count} | {kind} | {', '.join(sorted(others)) or 'none'} |", flush=True)


def timed(data: DataSet, size: int, measured: bool) -> float:
    """Seconds of filling the cache, with or without measuring while decoding, and of the check after it."""
    paths = [file.path for file in data.files]
    own = cache_module.measure
    with tempfile.TemporaryDirectory() as folder:
        cache = ImageCache(Path(folder))
        started = time.perf_counter()
        if measured:
            cache.array(data.root, paths, Decoding(size))
            check_data(data, cache, Decoding(size), decoded=paths)
            return time.perf_counter() - started
        (nothing,) = own([cache_module.decode(data.root / paths[0], Decoding(size))])
        cache_module.measure = lambda images: [nothing] * len(images)  # type: ignore[assignment]
        try:
            cache.array(data.root, paths, Decoding(size))
        finally:
            cache_module.measure = own
        return time.perf_counter() - started


def cost_table(sources: list[str], size: int, rounds: int) -> None:
    print("| data | images | decoding | with the check | more |\n|---|---|---|---|---|")
    for source in sources:
        data = open_dataset(source)
        for file in data.files:
            file_digest(data.root / file.path)
        plain, both = [], []
        for _ in range(rounds):
            plain.append(timed(data, size, measured=False))
            both.append(timed(data, size, measured=True))
        first, second = float(np.median(plain)), float(np.median(both))
        row = f"{first:.2f} s | {second:.2f} s | {second / first - 1:+.1%}"
        print(f"| {data.name} | {len(data.files)} | {row} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--plant", type=int, default=5)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("sources", nargs="*", default=["elpv"], help="data sets whose cost is measured too")
    asked = parser.parse_args()
    clean = checked(small_elpv(Path(tempfile.mkdtemp()) / "set", asked.images), asked.size)
    print(f"clean: {[finding.line for finding in clean.findings] or 'nothing found'}\n")
    planted_table(asked.images, asked.plant, asked.size)
    print()
    cost_table(asked.sources, asked.size, asked.rounds)


if __name__ == "__main__":
    main()
