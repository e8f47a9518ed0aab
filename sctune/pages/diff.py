"""`sctune diff`: the selection images on which two trials disagree, each trial at its own threshold.

Only images of the development pool are read: those that the study selects by, and the calibration normals that the
thresholds come from.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from sctune.deploy.build import calibrate, choose_heat_map
from sctune.errors import ConfigError, DataError
from sctune.files import replace_files
from sctune.manage.figures import Chosen, FigureOptions, choose_trial
from sctune.metrics.threshold import DEFAULT_RATE, Threshold, conformal_threshold
from sctune.pages.diff_picture import FlippedRow, Side, diff_picture
from sctune.search.study.study import Study
from sctune.tracking.run_files import log_run_files
from sctune.train.heatmap import Kind, scaled, some_heat_maps
from sctune.train.trainer import Trainer

FORMAT_VERSION = 1
SHOWN = 12
"""Images in the picture."""
MOVES = 5
"""Images whose rank moved most, where no verdict flips."""

Say = Callable[[list[str]], None]


@dataclass(frozen=True)
class DiffOptions:
    """task: its key, None for the first; out: folder, None for `diff` in the study's; rate: of false alarms, (0, 1)."""

    task: str | None = None
    out: Path | None = None
    rate: float = DEFAULT_RATE
    shown: int = SHOWN


@dataclass(frozen=True)
class ImageDiff:
    """One image under both trials; label 1: anomalous; verdicts: whether called so; ranks: 1 for the highest score."""

    path: str
    label: int
    scores: tuple[float, float]
    verdicts: tuple[bool, bool]
    ranks: tuple[float, float]

    @property
    def flips(self) -> bool:
        return self.verdicts[0] != self.verdicts[1]

    @property
    def moved(self) -> float:
        """Places by which it rose from the first trial to the second."""
        return self.ranks[0] - self.ranks[1]

    @property
    def right(self) -> int | None:
        """Which trial, 0 or 1, is right where they disagree."""
        return self.verdicts.index(bool(self.label)) if self.flips else None


@dataclass(frozen=True)
class DiffReport:
    """images: all selection images, by path. changes: field -> its two values. heat_map: kind of both."""

    study: str
    trials: tuple[int, int]
    epochs: tuple[int, int]
    task: str
    thresholds: tuple[Threshold, Threshold]
    changes: dict[str, tuple[Any, Any]]
    images: tuple[ImageDiff, ...]
    heat_map: Kind
    files: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def flips(self) -> list[ImageDiff]:
        """Images whose verdict flips, those first that moved most against their threshold."""
        return sorted((one for one in self.images if one.flips), key=lambda one: (-self._gap(one), one.path))

    @property
    def moves(self) -> list[ImageDiff]:
        """The largest moves in rank, whether a verdict flips or not."""
        return sorted(self.images, key=lambda one: (-abs(one.moved), one.path))[:MOVES]

    def _gap(self, one: ImageDiff) -> float:
        return sum(abs(score - cut.value) for score, cut in zip(one.scores, self.thresholds, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `--json`."""

        def told(one: ImageDiff) -> dict[str, Any]:
            return {**asdict(one), "moved": one.moved, "right": None if one.right is None else self.trials[one.right]}

        return {
            "format_version": FORMAT_VERSION,
            "study": self.study,
            "trials": list(self.trials),
            "epochs": list(self.epochs),
            "task": self.task,
            "images": len(self.images),
            "thresholds": [cut.to_dict() for cut in self.thresholds],
            "changes": {name: list(values) for name, values in self.changes.items()},
            "flips": [told(one) for one in self.flips],
            "moves": [told(one) for one in self.moves],
            "heat_map": self.heat_map,
            "files": [str(path) for path in self.files],
            "warnings": list(self.warnings),
        }


def diff_trials(root: Path, name: str, first: int, second: int, options: DiffOptions, say: Say) -> DiffReport:
    """Score the selection images with both trials, and show where they disagree; logs the files to MLflow.

    Raises StudyError for a study, trial or task that does not exist, CheckpointError where a trial's checkpoint is
    gone, DataError where the images changed or none calibrate, ConfigError for a trial compared with itself, a study
    that selects on its test images, and a folder that cannot be written.
    """
    if first == second:
        raise ConfigError(f"trial {first} is compared with itself; name two trials")
    chosen = [_choose(root, name, number, options.task) for number in (first, second)]
    study = Study.open(root, name)
    trainers = (_trainer(study, chosen[0]), _trainer(study, chosen[1]))
    if trainers[0].selection.paths != trainers[1].selection.paths:
        raise DataError(f"trials {first} and {second} were scored on other images")
    say([f"scoring {len(trainers[0].selection.paths)} images with both trials"])
    cuts = (_threshold(trainers[0], options.rate), _threshold(trainers[1], options.rate))
    report = _compared(study, chosen, trainers, cuts)
    folder = options.out or study.folder / "diff"
    files = _write(folder, report, trainers, options.shown, study.manifest.data.attribution)
    runs = [None, first, second]
    trouble = log_run_files(
        study.manifest.tracking_uri, study.manifest.study_id, runs, files, "diff", what="the pictures are"
    )
    return replace(report, files=tuple(files), warnings=(*report.warnings, *trouble))


def summary_lines(report: DiffReport) -> list[str]:
    """The outcome for people: thresholds, what flips, what moves."""
    lines = [
        f"trial {number} (epoch {epoch}): {cut.line()}"
        for number, epoch, cut in zip(report.trials, report.epochs, report.thresholds, strict=True)
    ]
    flips = report.flips
    right = [sum(one.right == side for one in flips) for side in (0, 1)]
    lines.append(
        f"{len(flips)} of {len(report.images)} verdicts flip"
        + (
            f"; trial {report.trials[0]} is right in {right[0]}, trial {report.trials[1]} in {right[1]}"
            if flips
            else "; the largest moves in rank:"
        )
    )
    return lines


def _choose(root: Path, name: str, number: int, task: str | None) -> Chosen:
    study = Study.open(root, name)
    if study.manifest.selection.mode == "test":
        raise ConfigError(
            f"study {name} selects on its test images (--selection test); `sctune diff` shows images of the "
            "development pool only"
        )
    return choose_trial(study, FigureOptions(trial=number, task=task))


def _trainer(study: Study, chosen: Chosen) -> Trainer:
    trainer = Trainer(
        study.manifest.config_of(chosen.row.params), chosen.task, split=chosen.split, objective=study.objective
    )
    trainer.load_state(*chosen.saved.tasks[chosen.task.key])
    return trainer


def _threshold(trainer: Trainer, rate: float) -> Threshold:
    calibration = calibrate(trainer)
    if calibration is None:
        raise DataError("no normal images are held out to calibrate a threshold with, so there are no verdicts")
    return conformal_threshold(calibration.scores, rate)


def _compared(
    study: Study, chosen: list[Chosen], trainers: tuple[Trainer, Trainer], cuts: tuple[Threshold, Threshold]
) -> DiffReport:
    scores = [trainer.method.score(trainer.selection.images).astype(float) for trainer in trainers]
    verdicts = [cut.anomalous(values) for cut, values in zip(cuts, scores, strict=True)]
    ranks = [stats.rankdata(-values) for values in scores]
    one, two = trainers
    images = tuple(
        ImageDiff(
            path,
            int(one.selection.labels[row]),
            (float(scores[0][row]), float(scores[1][row])),
            (bool(verdicts[0][row]), bool(verdicts[1][row])),
            (float(ranks[0][row]), float(ranks[1][row])),
        )
        for row, path in enumerate(one.selection.paths)
    )
    # trials of two methods have other fields
    a, b = one.config.flat(), two.config.flat()
    kind: Kind = choose_heat_map(one)["kind"]
    warnings = [f"trial {c.row.number} is {c.row.state}: its epoch {t.epoch} is shown"
                for c, t in zip(chosen, trainers, strict=True) if c.row.state != "COMPLETE"]  # fmt: skip
    return DiffReport(
        study=study.name,
        trials=(chosen[0].row.number, chosen[1].row.number),
        epochs=(one.epoch, two.epoch),
        task=chosen[0].task.key,
        thresholds=cuts,
        changes={name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)},
        images=images,
        heat_map=kind,
        warnings=tuple(warnings),
    )


def _write(
    folder: Path, report: DiffReport, trainers: tuple[Trainer, Trainer], shown: int, attribution: str | None
) -> list[Path]:
    """Picture, table of all images and measures; whole or none."""
    stem = f"diff-{report.trials[0]:04d}-{report.trials[1]:04d}-{report.task}"
    pictured = report.flips[:shown] or report.moves
    rows = _rows(report, trainers, pictured)

    def picture(path: Path) -> None:
        diff_picture(rows, report, path, attribution)

    def table(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            a, b = report.trials
            writer.writerow(["path", "label", f"score_{a}", f"score_{b}", f"anomalous_{a}", f"anomalous_{b}",
                             f"rank_{a}", f"rank_{b}", "flips"])  # fmt: skip
            for one in report.images:
                verdicts = [int(verdict) for verdict in one.verdicts]
                writer.writerow([one.path, one.label, *one.scores, *verdicts, *one.ranks, int(one.flips)])

    def document(path: Path) -> None:
        content = {name: value for name, value in report.to_dict().items() if name not in ("files", "warnings")}
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")

    writers = {f"{stem}.png": picture, f"{stem}.csv": table, f"{stem}.json": document}
    return replace_files({folder / name: write for name, write in writers.items()})


def _rows(report: DiffReport, trainers: tuple[Trainer, Trainer], pictured: list[ImageDiff]) -> list[FlippedRow]:
    places = {path: row for row, path in enumerate(trainers[0].selection.paths)}
    chosen = [places[one.path] for one in pictured]
    sides: list[list[Side]] = []
    for number, trainer in enumerate(trainers):
        images = trainer.selection.images[chosen]
        maps = zip(
            _saliency(trainer, images), scaled(some_heat_maps(trainer.method, images, report.heat_map)), strict=True
        )
        cut = report.thresholds[number].value
        sides.append(
            [
                Side(saliency, heat, one.scores[number], cut, one.verdicts[number])
                for one, (saliency, heat) in zip(pictured, maps, strict=True)
            ]
        )
    pixels = trainers[0].selection.images[chosen]
    return [FlippedRow(one, pixels[row], (sides[0][row], sides[1][row])) for row, one in enumerate(pictured)]


def _saliency(trainer: Trainer, images: np.ndarray, batch_size: int = 8) -> Sequence[np.ndarray | None]:
    """Saliency maps of training [S, S] in [0, 1]: where the trial would not cut, were the image a donor.

    None each for a training that cuts by none.
    """
    parts = [trainer.method.saliency(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    return [one for part in parts if part is not None for one in part] or [None] * len(images)
