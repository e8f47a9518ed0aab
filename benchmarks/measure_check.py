"""`sctune data check`: what it costs beside decoding, and which planted faults it finds.

python benchmarks/measure_check.py [--images 600] [--plant 5] [--size 160] [elpv FOLDER ...]: prints tables as Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import Counter
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


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def changed(change: Callable[[Image.Image], Image.Image]) -> Plant:
    # quality: of JPEGs; other types take no notice
    return lambda path, _: change(opened(path)).save(path, quality=95)


def blurred(radius: int) -> Plant:
    return changed(lambda picture: picture.filter(ImageFilter.GaussianBlur(radius)))


def copied(save: Callable[[Path, Path], None]) -> Plant:
    return lambda path, other: save(path, other / f"{path.stem}-copy{path.suffix}")


def clipped(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(picture).astype(float) * 3, 0, 255).astype(np.uint8))


def resaved(path: Path, target: Path) -> None:
    opened(path).save(target.with_name(f"{target.stem}-again.jpg"), quality=85)


def smaller(path: Path, target: Path) -> None:
    picture = opened(path)
    picture.resize((picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.LANCZOS).save(target, quality=95)


FAULTS: dict[str, tuple[str, Plant]] = {
    "identical, other label": ("identical", copied(lambda path, target: shutil.copy(path, target) and None)),
    "saved again as JPEG, quality 85": ("near", copied(resaved)),
    "two thirds of the size": ("near", copied(smaller)),
    "constant": ("constant", changed(lambda picture: Image.new("L", picture.size, 90))),
    "overexposed": ("clipped", changed(clipped)),
    "blurred (radius 12)": ("blurred", blurred(12)),
    "blurred (radius 6)": ("blurred", blurred(6)),
    "blurred (radius 4)": ("blurred", blurred(4)),
    "cut off": ("unreadable", lambda path, _: path.write_bytes(path.read_bytes()[:300]) and None),
    "another size": ("sizes", changed(lambda picture: picture.resize((picture.width, picture.height * 2)))),
}
EXPECTED_ELSEWHERE = {"another size": {"near"}, "two thirds of the size": {"sizes"}, "constant": set[str]()}


def some_of(source: str, root: Path, count: int) -> Path:
    """ok/ and nok/TYPE/ of the first images by name, half of them normal where there are as many anomalous ones."""
    data = open_dataset(source)
    anomalies = data.anomalies[: count // 2]
    for file in (*data.normals[: count - len(anomalies)], *anomalies):
        folder = root / ("ok" if file.label == 0 else f"nok/{file.kind}")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(data.root / file.path, folder / file.path.replace("/", "-"))
    return root


def checked(root: Path, size: int) -> DataCheck:
    with tempfile.TemporaryDirectory() as cache:
        return check_data(open_dataset(str(root)), ImageCache(Path(cache)), Decoding(size))


def planted_table(source: str, images: int, plant: int, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        clean = checked(some_of(source, Path(folder) / "set", images), size)
    name = open_dataset(source).name
    print(f"{name}, clean: {[finding.line for finding in clean.findings] or 'nothing found'}\n")
    before = Counter({finding.kind: finding.count for finding in clean.findings})
    print("| planted | images | found | as | other findings |\n|---|---|---|---|---|")
    for fault, (kind, make) in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = some_of(source, Path(folder) / "set", images)
            normals = sorted((root / "ok").iterdir())
            chosen = normals[:: max(1, len(normals) // plant)][:plant]
            other = sorted((root / "nok").iterdir())[0]
            for path in chosen:
                make(path, other)
            report = checked(root, size)
        found = sum(finding.count for finding in report.findings if finding.kind == kind) - before[kind]
        new = {finding.kind for finding in report.findings if finding.count > before[finding.kind]}
        others = new - {kind} - EXPECTED_ELSEWHERE.get(fault, set())
        count = found // 2 if kind == "identical" else found
        print(f"| {fault} | {len(chosen)} | {count} | {kind} | {', '.join(sorted(others)) or 'none'} |", flush=True)


def timed(data: DataSet, size: int, measured: bool) -> tuple[float, float]:
    """Seconds, of processors and by the clock, of filling the cache; measured: with facts, and the check after it."""
    paths = [file.path for file in data.files]
    own = cache_module.measure
    (nothing,) = own([cache_module.decode(data.root / paths[0], Decoding(size))])
    with tempfile.TemporaryDirectory() as folder:
        cache = ImageCache(Path(folder))
        if not measured:
            cache_module.measure = lambda images: [nothing] * len(images)
        started = time.process_time(), time.perf_counter()
        try:
            cache.array(data.root, paths, Decoding(size))
            if measured:
                check_data(data, cache, Decoding(size), decoded=paths)
        finally:
            cache_module.measure = own
        return time.process_time() - started[0], time.perf_counter() - started[1]


def cost_table(sources: list[str], size: int, rounds: int) -> None:
    print("| data | images | decoding, processor | with the check | more | by the clock |\n|---|---|---|---|---|---|")
    for source in sources:
        data = open_dataset(source)
        for file in data.files:
            file_digest(data.root / file.path)
        # each round has both, so that other work on the machine meets them alike
        pairs = np.array([[timed(data, size, measured) for measured in (False, True)] for _ in range(rounds)])
        (plain, _), (both, _) = np.median(pairs, axis=0)
        more = np.median(pairs[:, 1] / pairs[:, 0] - 1, axis=0)
        row = f"{plain:.2f} s | {both:.2f} s | {more[0]:+.1%} | {more[1]:+.1%}"
        print(f"| {data.name} | {len(data.files)} | {row} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--plant", type=int, default=5)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("sources", nargs="*", default=["elpv"], help="data sets whose images are taken")
    asked = parser.parse_args()
    for source in asked.sources:
        planted_table(source, asked.images, asked.plant, asked.size)
        print()
    cost_table(asked.sources, asked.size, asked.rounds)


if __name__ == "__main__":
    main()
