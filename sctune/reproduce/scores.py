"""Test scores of trained trials: every test image scored once, after the study, from each trial's last checkpoint."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch

from sctune.config import Task
from sctune.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from sctune.files import replace_files
from sctune.metrics.image_level import auroc
from sctune.metrics.statistics import Scores
from sctune.reproduce.cells import Cell
from sctune.reproduce.columns import Column
from sctune.reproduce.studies import StudyPlan
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.study import Study
from sctune.train.single import score_test
from sctune.train.trainer import Trainer
from sctune.trial.checkpoint import Checkpoint, TrialStore

FORMAT_VERSION = 1
COLUMNS = ("path", "label", "score")
PLAIN_ROWS = 5000
"""Longer lists of scores are compressed."""

Rows = list[tuple[str, int, float]]
"""Path, label and score of each test image."""


class ScoreFolder:
    """The scores of one study in a folder: one CSV file per column, cell and seed.

    study_id: of the study whose trials are scored; a file beside the folder keeps it. Scores of another one, trained
    under the same name and removed since, are not read, and go before the first new ones are written.
    """

    def __init__(self, folder: Path, plan: StudyPlan, study_id: str) -> None:
        self.folder = folder / plan.name
        self.plan = plan
        self._owner = {"format_version": FORMAT_VERSION, "study_id": study_id}
        self._owner_file = folder / f"{plan.name}.json"
        self._own = self._is_own()

    def find(self, column: Column, cell: Cell, seed: int) -> Path | None:
        """The file of a cell that was scored before."""
        if not self._own:
            return None
        plain = self._path(column, cell, seed)
        return next((path for path in (plain, plain.with_name(f"{plain.name}.gz")) if path.is_file()), None)

    def write(self, column: Column, cell: Cell, seed: int, rows: Rows) -> Path:
        """Keep the scores of a cell: the whole file or none; raises ConfigError where it cannot be written."""
        if not self._own:
            self._take_over()
        path = self._path(column, cell, seed)
        if len(rows) > PLAIN_ROWS:
            path = path.with_name(f"{path.name}.gz")
        lines = [COLUMNS, *((name, label, repr(score)) for name, label, score in rows)]
        replace_files({path: lambda staged: _write_lines(staged, lines)})
        return path

    def read(self, column: Column, cell: Cell, seed: int) -> Scores | None:
        """The stored scores of a cell, None where there are none; raises DataError for a damaged file."""
        path = self.find(column, cell, seed)
        if path is None:
            return None
        try:
            with _opened(path, "rt") as stream:
                header, *rows = list(csv.reader(stream))
            names, labels, scores = zip(*rows, strict=True)
            if tuple(header) != COLUMNS:
                raise ValueError(f"its columns are {header}")
            read = Scores(
                pool=self.plan.place.name,
                subset=cell.row.label,
                paths=names,
                labels=np.array(labels).astype(int),
                scores=np.array(scores).astype(float),
                seed=seed,
            )
            auroc(read.labels, read.scores)
            return read
        except (ValueError, OSError, EOFError, csv.Error, zlib.error, DataError, NonFiniteError) as problem:
            raise DataError(f"{path} cannot be read ({problem}); remove it, and it is made again") from None

    def missing(self, column: Column) -> list[tuple[Cell, int]]:
        """Cells and seeds of a column that are still to be scored."""
        pairs = [(cell, seed) for cell in self.plan.cells for seed in self.plan.seeds]
        return [(cell, seed) for cell, seed in pairs if self.find(column, cell, seed) is None]

    def _is_own(self) -> bool:
        try:
            owner = json.loads(self._owner_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        version = owner.get("format_version") if isinstance(owner, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            # its scores must not go as those of another study do
            raise DataError(
                f"{self._owner_file} has format_version {version}, this sctune reads {FORMAT_VERSION}; update it"
            )
        return bool(owner == self._owner)

    def _take_over(self) -> None:
        for path in self.folder.glob("*.csv*"):
            try:
                path.unlink()
            except OSError as problem:
                raise ConfigError(f"cannot remove {path}: {problem.strerror}; remove {self.folder}") from None
        replace_files({self._owner_file: lambda staged: staged.write_text(json.dumps(self._owner), encoding="utf-8")})
        self._own = True

    def _path(self, column: Column, cell: Cell, seed: int) -> Path:
        return self.folder / f"{column.name}--{self.plan.task(cell, seed).key}.csv"


def score_trial(study: Study, trial: TrialRow, folder: ScoreFolder, column: Column) -> Iterator[tuple[Cell, int, Rows]]:
    """Score what a trial's column still lacks; gives each cell and seed with its scores, which are stored by then.

    An untrained column is scored with the weights that the trial began with. Raises CheckpointError where the trial's
    checkpoint is gone.
    """
    todo = folder.missing(column)
    if not todo:
        return
    saved = None if column.untrained else TrialStore(study.manifest.storage_path, trial.number).load_latest()
    if saved is None and not column.untrained:
        raise CheckpointError(
            f"{study.name}: trial {trial.number} has no checkpoint any more; remove {study.folder} to train it again"
        )
    for cell, seed in todo:
        rows = _score(study, trial, saved, folder.plan.task(cell, seed))
        folder.write(column, cell, seed, rows)
        yield cell, seed, rows


def _score(study: Study, trial: TrialRow, saved: Checkpoint | None, task: Task) -> Rows:
    trainer = Trainer(study.manifest.config_of(trial.params), task)
    if saved is not None:
        trainer.load_state(*saved.tasks[task.key])
    with torch.random.fork_rng():
        # read where scores are drawn at random (profile paper): the same scores whenever they are made
        torch.manual_seed(task.seed)
        return score_test(trainer)


def _write_lines(path: Path, lines: Sequence[Sequence[object]]) -> None:
    with _opened(path, "wt") as stream:
        csv.writer(stream).writerows(lines)


def _opened(path: Path, mode: Literal["rt", "wt"]) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, mode, newline="", encoding="utf-8")
    return path.open(mode, newline="", encoding="utf-8")
