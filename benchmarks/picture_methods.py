"""What each method makes of the same images of one data set: masks, reconstructions, copies, heat maps, as pictures.

Each method is trained by itself, as its profile has it, and shown a normal image and anomalies that it was not trained
on, all of the development pool: OUT/METHOD.png, and all of them in OUT/methods.png. A picture that is there is not made
again, so that methods can be added. Images carry what their licence asks for, and so do the pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from measure_common import PLAIN, Unscored, data_sets, methods_called
from PIL import Image

from sctune.config import load_profile
from sctune.data.catalog import open_dataset
from sctune.errors import SctuneError
from sctune.files import replace_files
from sctune.manage.figure_files import view_columns
from sctune.methods.named import method_names
from sctune.tracking.feature_plots import view_picture
from sctune.train.views import views_of

LEFT_OUT = ("kdad", "kdad_resnet18")
"""Weights that download from the web; ask for them by name."""
ANOMALIES = 2
ACROSS = 2
"""Pictures beside each other."""


def make(name: str, values: dict[str, object], options: argparse.Namespace) -> Path:
    """Train one method and write its picture."""
    path: Path = options.out / f"{name}.png"
    config = load_profile(options.profile).override(values)
    trainer = Unscored(config)
    for report in trainer.fit():
        print(f"{name}: epoch {report.epoch} of {report.epochs}", flush=True)
    rows = shown_rows(trainer.selection.labels)
    views = views_of(trainer.method, trainer.selection.images[rows])
    kinds = {file.path: file.kind for file in trainer.split.selection}
    paths = [trainer.selection.paths[row] for row in rows]
    lines = [f"{kinds[one]}\nscore {score:.4g}" for one, score in zip(paths, views.scores, strict=True)]
    title = f"{name}: {config.entry.describe(config)}"
    attribution = open_dataset(config.data.source, config.data.category, config.data.group).attribution
    credit = None if attribution is None else f"Images: {attribution}; so is this picture."
    replace_files({path: lambda staged: view_picture(lines, view_columns(views), title, staged, credit)})
    return path


def shown_rows(labels: np.ndarray) -> list[int]:
    """A normal image, and anomalies spread over those that are there; the same for all methods of a data set."""
    anomalies = np.flatnonzero(labels == 1)
    places = np.linspace(0, len(anomalies) - 1, ANOMALIES + 2).round().astype(int)[1:-1]
    return [int(np.flatnonzero(labels == 0)[0]), *map(int, anomalies[places])]


def together(paths: list[Path], out: Path) -> None:
    """All pictures in columns of about the same height, on white."""
    pictures = [Image.open(path).convert("RGB") for path in paths]
    width = max(one.width for one in pictures)
    columns: list[list[Image.Image]] = [[] for _ in range(min(ACROSS, len(pictures)))]
    for one in pictures:
        min(columns, key=lambda column: sum(other.height for other in column)).append(one)
    height = max(sum(one.height for one in column) for column in columns)
    sheet = Image.new("RGB", (width * len(columns), height), "white")
    for number, column in enumerate(columns):
        top = 0
        for one in column:
            sheet.paste(one, (number * width, top))
            top += one.height
    replace_files({out: lambda staged: sheet.save(staged, "PNG", optimize=True)})


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    default = [PLAIN, *(name for name in method_names() if name not in LEFT_OUT)]
    found.add_argument("--sets", type=Path, help="YAML: name of each further data set -> its fields")
    found.add_argument("--data", default="elpv", help="name of the data set")
    found.add_argument("--methods", nargs="+", default=default, help="names; default: all whose weights are here")
    found.add_argument("--profile", default="cpu", help="smoke, cpu, gpu or paper")
    found.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    return found


def main() -> None:
    options = parser().parse_args()
    try:
        (fields,) = data_sets(options.sets, [options.data]).values()
        options.out.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, own in methods_called(options.methods).items():
            path: Path = options.out / f"{name}.png"
            common = {"runtime.device": "cpu", "data.n_anomalies": 10}
            paths.append(path if path.is_file() else make(name, {**common, **own, **fields}, options))
        together(paths, options.out / "methods.png")
    except SctuneError as problem:
        raise SystemExit(str(problem)) from None
    print(f"written to {options.out / 'methods.png'}")


if __name__ == "__main__":
    main()
