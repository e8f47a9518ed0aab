"""The one look at the test images: all of them scored by the models of the winner and of what it is compared with."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sctune.config import Task
from sctune.data.split import Split
from sctune.deploy.build import calibrate
from sctune.errors import CheckpointError, DataError
from sctune.files import replace_files
from sctune.metrics.statistics import Scores
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.study import Study
from sctune.train.single import score_test
from sctune.train.trainer import Trainer
from sctune.trial.checkpoint import TrialStore, check_trained

Say = Callable[[list[str]], None]


@dataclass(frozen=True)
class TaskScores:
    """Test scores of one trained model; calibration: scores of the normal images that were held out for it."""

    task: Task
    scores: Scores
    calibration: tuple[float, ...]
    file: str


def subset_of(task: Task) -> str:
    """Category and class, which with a seed name a model; empty where a study has one of them only."""
    return "/".join(part for part in (task.category, task.known_class) if part)


def trained_model(study: Study, row: TrialRow, task: Task, split: Split) -> Trainer:
    """A trial's trained model of one task; raises CheckpointError where its checkpoint is gone."""
    saved = TrialStore(study.manifest.storage_path, row.number).load_latest(only=task.key)
    if saved is None:
        raise CheckpointError(f"{study.name}: trial {row.number} has no checkpoint any more; confirm again")
    check_trained(saved, row.number, task)
    trainer = Trainer(study.manifest.config_of(row.params), task, split=split, objective=study.objective)
    trainer.load_state(*saved.tasks[task.key])
    return trainer


def score_models(
    study: Study, name: str, row: TrialRow, splits: dict[str, Split], folder: Path, say: Say
) -> list[TaskScores]:
    """Score the test images of every task with a trial's models, in the order of the tasks; files go to `folder`."""
    found = []
    for task in study.manifest.tasks:
        trainer = trained_model(study, row, task, splits[task.key])
        rows = score_test(trainer)
        if {label for _, label, _ in rows} != {0, 1}:
            raise DataError(f"task {task.key}: the test images are all of one class, so there is no AUROC; add images")
        file = f"{name}--{task.key}.csv"
        write_scores(folder / file, rows)
        calibration = calibrate(trainer)
        scores = Scores(
            pool=f"{task.source}|{task.category or ''}",
            subset=subset_of(task),
            paths=tuple(path for path, _, _ in rows),
            labels=np.array([label for _, label, _ in rows]),
            scores=np.array([score for _, _, score in rows]),
            seed=task.seed,
        )
        found.append(TaskScores(task, scores, calibration.scores if calibration else (), file))
        say([f"scored {len(rows)} test images with {name}, {task.key}"])
    return found


def read_scores(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Paths, labels and scores that `score_models` wrote; raises DataError for a damaged file."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            header, *rows = list(csv.reader(stream))
        if header != ["path", "label", "score"]:
            raise ValueError(f"its columns are {header}")
        return (
            [row[0] for row in rows],
            np.array([int(row[1]) for row in rows]),
            np.array([float(row[2]) for row in rows]),
        )
    except (OSError, ValueError, IndexError, csv.Error) as problem:
        raise DataError(f"{path} cannot be read ({problem})") from None


def write_scores(path: Path, rows: Sequence[tuple[str, int, float]]) -> None:
    """Path, label and score of images, as `read_scores` reads them; raises ConfigError where they cannot be kept."""
    replace_files({path: partial(_write, rows=rows)}, "--study-root")


def _write(path: Path, rows: Sequence[tuple[str, int, float]]) -> None:
    lines = [("path", "label", "score"), *((name, label, repr(score)) for name, label, score in rows)]
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(lines)
