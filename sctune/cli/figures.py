"""The commands that make pictures: `sctune figures` and `sctune augmentations`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from sctune.cli import options as opt
from sctune.cli.output import emit, say
from sctune.config import load_profile, parse_assignments
from sctune.errors import ConfigError
from sctune.files import check_writable
from sctune.paths import studies_folder


def figures(
    study: Annotated[str, typer.Argument(help="Study name.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Trial number; default: the best.")] = None,
    task: Annotated[str | None, typer.Option(help="Task of the study by its key; default: the first.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the files; default: figures/ in the study's.")] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Open the test pool: take the unseen anomalies from there.")
    ] = False,
    perplexity: Annotated[float, typer.Option(min=1, help="Neighbours that count in the t-SNE, if any.")] = 30.0,
    limit: Annotated[int, typer.Option(min=2, help="Most images of each group.")] = 200,
    study_root: opt.StudyRoot = None,
    as_json: opt.AsJson = False,
) -> None:
    """Pictures of what a trial has learned: features by t-SNE, galleries, three images as the method sees them."""
    from sctune.manage.figures import FigureOptions, make_figures

    folder = None if out is None else out.expanduser().absolute()
    if folder is not None:
        check_writable(folder)
    options = FigureOptions(trial, task, folder, test, perplexity, limit)
    report = make_figures((study_root or studies_folder()).expanduser().absolute(), study, options, say)
    say([f"warning: {line}" for line in report.warnings])
    lines = []
    for panel, values in report.silhouettes.items():
        known = ", ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)
        lines.append(f"silhouette against the normal images, {panel} training: {known}")
    emit(report.to_dict() if as_json else None, [*lines, *map(str, report.files)])


def augmentations(
    data: Annotated[str, typer.Option(help="elpv, a folder (MVTec layout or ok/ + nok/) or a CSV file.")] = "elpv",
    category: Annotated[str | None, typer.Option(help="Sub-folder of the data, as in MVTec AD.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Augmentation; repeatable; default: all.")] = None,
    profile: Annotated[str, typer.Option(help="Base values: smoke, cpu, gpu or paper.")] = "cpu",
    count: Annotated[int, typer.Option(min=1, help="Images, a line each.")] = 4,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the configuration; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("augmentations.png"),
) -> None:
    """Draw what each augmentation makes of normal images: receiver, donor, saliency, mask and result."""
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: give a file name that ends in .png")
    target = out.expanduser().absolute()
    check_writable(target.parent)
    from sctune.tracking.feature_plots import augmentation_picture
    from sctune.train.augmentations import augmentation_examples

    values = parse_assignments(assignments or [])
    source = data if data == "elpv" or "=" in data else str(Path(data).expanduser().absolute())
    # what is drawn is of the heads' training
    drawn = {"data.source": source, "data.category": category, "model.normal_head": "mlp"}
    config = load_profile(profile).override(drawn)
    found, attribution = augmentation_examples(config, kind or [], values, count)
    title = "What each augmentation makes of the same normal images"
    caption = [
        f"Held-out normal images of {Path(source).name}, before rotation. Mask: white is what was changed in the "
        "receiver. Saliency: of the network before training.",
        *([f"Images: {attribution}; so is this picture."] if attribution else []),
    ]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".figures-") as staging:
            made = augmentation_picture(found, title, caption, Path(staging) / target.name)
            os.replace(made, target)
    except OSError as problem:
        raise ConfigError(f"cannot write {target}: {problem.strerror}; give another file with --out") from None
    print(target)
