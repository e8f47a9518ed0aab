"""The files of `sctune figures`: pictures, coordinates and measures, written together or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sctune.backbones.weights import IMAGENET, RANDOM
from sctune.config import TrialConfig
from sctune.errors import ConfigError
from sctune.files import staged_files
from sctune.metrics.objective import Objective
from sctune.tracking import feature_plots as plots
from sctune.train.gallery import PseudoExample
from sctune.train.views import Views

FORMAT_VERSION = 1
GROUPS = tuple(plots.STYLES)
ROWS = 6
"""Pseudo anomalies whose making is shown."""
ACROSS = 8
"""Images of each group in the gallery."""
LOOKED_AT = 3
"""Images that are shown as the method sees them, one of them normal."""


@dataclass(frozen=True)
class FigureReport:
    """What was made. silhouettes: panel -> group -> mean silhouette against the normal images.

    value: the objective at that epoch, None where it was not recorded; mode: what it was computed on (Split);
    perplexity: of the t-SNE, None (and no silhouettes) where the method has no features; images: group -> how many are
    shown.
    """

    study: str
    trial: int
    task: str
    epoch: int
    value: float | None
    mode: str
    perplexity: float | None
    images: dict[str, int]
    silhouettes: dict[str, dict[str, float | None]]
    test_pool_opened: bool
    files: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    def finished(self, files: Sequence[Path], warnings: Sequence[str]) -> FigureReport:
        return replace(self, files=tuple(files), warnings=(*self.warnings, *warnings))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `--json`."""
        return {"format_version": FORMAT_VERSION, **asdict(self), "files": [str(path) for path in self.files]}


@dataclass(frozen=True)
class Cloud:
    """Images uint8 [N, S, S, 3]; of each its group, its name (file, or number) and its kind (anomaly type)."""

    images: np.ndarray
    groups: list[str]
    names: list[str]
    kinds: list[str]

    def of(self, group: str) -> np.ndarray:
        """Which images belong to a group [N] bool."""
        return np.array([name == group for name in self.groups], dtype=bool)

    def some(self, group: str, count: int) -> list[np.ndarray]:
        """At most `count` images of a group, spread over it, so that several types are among them."""
        return [self.images[row] for row in self._rows(group, count)]

    @property
    def looked_at(self) -> list[int]:
        """Rows of a normal image and of anomalies that were not trained on; where there are no such, of others."""
        chosen = self._rows("normal", 1)
        for group in ("unseen", "seen", "pseudo", "normal"):
            more = [row for row in self._rows(group, LOOKED_AT) if row not in chosen]
            chosen += more[: LOOKED_AT - len(chosen)]
        return chosen

    def _rows(self, group: str, count: int) -> list[int]:
        rows = np.flatnonzero(self.of(group))
        return [int(rows[place]) for place in _spread(len(rows), count)]


@dataclass(frozen=True)
class Sheet:
    """All that the files show. points: panel (before, after) -> [N, 2], none where there are no features.

    tasks: how many the study has; averaged: of how many of them the value is the mean; views: of the images
    `cloud.looked_at`.
    """

    report: FigureReport
    config: TrialConfig
    tasks: int
    averaged: int
    cloud: Cloud
    examples: Sequence[PseudoExample]
    points: Mapping[str, np.ndarray]
    views: Views
    attribution: str | None
    objective: Objective

    @property
    def stem(self) -> str:
        """Start of the file names: no picture with test images ever takes the place of one without."""
        task = [self.report.task] if self.tasks > 1 else []
        return "-".join([f"trial-{self.report.trial:04d}", *task, *(["test"] if self.report.test_pool_opened else [])])

    @property
    def title(self) -> str:
        report = self.report
        parts = [f"study {report.study}", f"trial {report.trial}"]
        if self.tasks > 1:
            parts.append(f"task {report.task}")
        parts.append(f"epoch {report.epoch} of {self.config.epochs}")
        if report.value is not None:
            mean = f", mean of {self.averaged} tasks" if self.averaged > 1 else ""
            parts.append(f"selection {self.objective.label} {report.value:.3f} (mode {report.mode}{mean})")
        if report.test_pool_opened:
            parts.append("TEST POOL OPENED")
        return ", ".join(parts)


def maker_of(config: TrialConfig) -> str:
    """What makes a configuration's pseudo anomalies, for people: the kind, or a method that makes its own."""
    return config.augment.kind if config.entry.looks_at("augment.kind") else config.method.name


def publish(folder: Path, sheet: Sheet) -> list[Path]:
    """Write all files of a sheet into a folder, whole or none; raises ConfigError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staged_files(folder) as staging:
            made = _write(staging / sheet.stem, sheet)
        return [folder / path.name for path in made]
    except OSError as problem:
        raise ConfigError(
            f"cannot write figures to {folder}: {problem.strerror}; give another folder with --out"
        ) from None


def _write(stem: Path, sheet: Sheet) -> list[Path]:
    """Files named `<stem>-<what>`."""

    def named(what: str) -> Path:
        return stem.with_name(f"{stem.name}-{what}")

    files = (
        [_features(sheet, named("features.png")), _coordinates(sheet, named("features.csv"))] if sheet.points else []
    )
    document = {name: value for name, value in sheet.report.to_dict().items() if name != "files"}
    named("features.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    files += [named("features.json"), _views(sheet, named("views.png"))]
    kind, cloud = maker_of(sheet.config), sheet.cloud
    if sheet.examples:
        rows = [sheet.examples[place] for place in _spread(len(sheet.examples), ROWS)]
        title = f"Pseudo anomalies by {kind}\n{sheet.title}"
        unseen = cloud.some("unseen", len(plots.MAKING))
        files.append(plots.making_picture(rows, unseen, title, named("pseudo.png"), sheet.attribution))
    names = {"normal": "normal", "seen": "seen", "unseen": "unseen", "pseudo": f"pseudo\n({kind})"}
    strips = [plots.Strip(names[group], cloud.some(group, ACROSS)) for group in GROUPS if cloud.of(group).any()]
    files.append(plots.group_picture(strips, sheet.title, named("gallery.png"), sheet.attribution))
    return files


def _features(sheet: Sheet, path: Path) -> Path:
    report, cloud = sheet.report, sheet.cloud
    weights = sheet.config.model.weights
    source = {IMAGENET: "ImageNet weights", RANDOM: "random weights"}.get(weights, Path(weights).name)
    titles = {"before": f"before training ({source})", "after": f"after epoch {report.epoch}"}
    panels = [
        plots.Panel(titles[panel], points, cloud.groups, _measures(report.silhouettes[panel]))
        for panel, points in sheet.points.items()
    ]
    pool = "test pool" if report.test_pool_opened else "development pool"
    texts = {
        "normal": "normal, held out",
        "seen": "seen anomalies, trained on",
        "unseen": f"unseen anomalies, {pool}",
        "pseudo": f"pseudo anomalies, {maker_of(sheet.config)}",
    }
    labels = {group: f"{texts[group]} ({report.images[group]})" for group in GROUPS if report.images[group]}
    caption = [
        f"t-SNE (perplexity {report.perplexity:.3g}) of the backbone's features, averaged over the map; each panel is "
        "embedded on its own, so only neighbourhoods can be read from it. Silhouette: of the features themselves, each "
        "group against the normal images; 1 apart, 0 mixed. The seen anomalies were trained on, so how far they stand "
        "apart says nothing about new ones. The pseudo anomalies are made of normal images with the trained weights, "
        "and are the same in both panels.",
        *(f"{line[0].upper()}{line[1:]}." for line in report.warnings),
    ]
    return plots.feature_picture(panels, labels, sheet.title, caption, path)


def view_columns(views: Views) -> list[plots.Column]:
    """The images, what is made of them on the way to a score, and both kinds of heat map."""
    columns = [
        plots.Column("image", views.images),
        *(
            plots.Column(name, made, note="" if made.ndim == 4 else "from 0 (black) to 1")
            for name, made in views.made.items()
        ),
    ]
    if views.cells is not None:
        note = "what is bright raises the score, in one scale for all images"
        columns.append(plots.Column("heat map, score", views.cells, "all", note))
    if views.gradients is not None:
        note = "where the score changes most with the pixels, each image in a scale of its own"
        columns.append(plots.Column("heat map, gradient", views.gradients, "each", note))
    return columns


def _views(sheet: Sheet, path: Path) -> Path:
    cloud, views = sheet.cloud, sheet.views
    names = [_view_name(cloud, row, score) for row, score in zip(cloud.looked_at, views.scores, strict=True)]
    columns = view_columns(views)
    title = f"What {sheet.config.method.name} makes of images\n{sheet.title}"
    return plots.view_picture(names, columns, title, path, sheet.attribution)


def _view_name(cloud: Cloud, row: int, score: float) -> str:
    kind = f" ({cloud.kinds[row]})" if cloud.groups[row] != "normal" else ""
    return f"{cloud.groups[row]}{kind}\nscore {score:.4g}"


def _measures(silhouettes: Mapping[str, float | None]) -> str:
    known = [f"{name} {value:.2f}" for name, value in silhouettes.items() if value is not None]
    return f"silhouette against normal: {', '.join(known)}" if known else ""


def _spread(total: int, count: int) -> list[int]:
    """At most `count` places of `total`, evenly apart: neighbours in a list of files are often alike."""
    return [int(place) for place in np.linspace(0, total - 1, min(count, total)).round()]


def _coordinates(sheet: Sheet, path: Path) -> Path:
    cloud, points = sheet.cloud, sheet.points
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["group", "file", "type", *(f"{panel}_{axis}" for panel in points for axis in "xy")])
        for row, lead in enumerate(zip(cloud.groups, cloud.names, cloud.kinds, strict=True)):
            table.writerow([*lead, *(f"{value:.6g}" for panel in points.values() for value in panel[row])])
    return path
