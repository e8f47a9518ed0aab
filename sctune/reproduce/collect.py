"""What the studies of a table have given so far: whole sets of scores, and why the other cells have none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from sctune.errors import DataError, SctuneError, StudyError
from sctune.metrics.statistics import Scores
from sctune.reproduce.cells import Cell, CellKey
from sctune.reproduce.columns import Column, before_training
from sctune.reproduce.plan import TablePlan, cell_name
from sctune.reproduce.scores import ScoreFolder
from sctune.reproduce.studies import StudyPlan
from sctune.reproduce.tables import Missing
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.stored import load_result
from sctune.search.study.study import Study, list_studies

_DAMAGE = (StudyError, StorageInternalError, SQLAlchemyError, ValueError, KeyError)
"""What a manifest or record that is no longer whole may end in."""


@dataclass(frozen=True)
class Stored:
    """A study of a table as it lies on disk. rows: its trials, the full runs first."""

    study: Study
    plan: StudyPlan
    rows: tuple[TrialRow, ...]

    @property
    def failed(self) -> list[TrialRow]:
        """The trials that ended without a model; they are not run again by themselves."""
        return [row for row in self.rows if row.state == "FAIL"]

    @property
    def is_complete(self) -> bool:
        """Whether every column's trial has ended."""
        return sum(row.state in ("COMPLETE", "FAIL") for row in self.rows) >= len(self.plan.columns)

    def why_failed(self, trial: TrialRow) -> str:
        """What went wrong with a failed trial, and the way out."""
        cause = trial.failure["message"] if trial.failure else "no reason was recorded"
        return (
            f"trial {trial.number} of {self.study.name} failed: {cause}; remove {self.study.folder} to train it again"
        )

    def scores(self, out: Path) -> ScoreFolder:
        """Its scores among the results of a table."""
        return ScoreFolder(out / "scores", self.plan, self.study.manifest.study_id)

    def trials(self) -> dict[str, TrialRow]:
        """Column name -> its trial; the full run where there are several."""
        found: dict[str, TrialRow] = {}
        for row in self.rows:
            column = self.plan.column_of(row.params)
            if column is not None:
                found.setdefault(column.name, row)
        return found


def stored_study(study_root: Path, plan: StudyPlan) -> Stored | None:
    """The study of a plan, None where there is none; raises StudyError for one that cannot be read."""
    if plan.name not in list_studies(study_root):
        return None
    try:
        return Stored(Study.open(study_root, plan.name), plan, load_result(study_root, plan.name, noise=False).rows)
    except _DAMAGE as problem:
        folder = study_root / plan.name
        reason = " ".join(str(problem).split())[:300]
        raise StudyError(f"{folder} cannot be read ({reason}); remove it to train it again") from None


def shown(plan: TablePlan, study: StudyPlan) -> list[tuple[Column, Column]]:
    """The table's columns that a study gives, each with the column that its trial was trained for."""
    pairs = [(column, column) for column in study.columns]
    untrained = [column for column in study.columns if plan.setup.shows_untrained(column)]
    return pairs + [(before_training(column), column) for column in untrained]


def collect(
    plan: TablePlan, problems: Mapping[str, SctuneError]
) -> tuple[dict[tuple[CellKey, str], list[Scores]], list[Missing]]:
    """Scores of every cell that has all its seeds, and the cells that should have them and do not.

    problems: study name -> what stopped it in this run. What cannot be read is a gap with its reason.
    """
    scored: dict[tuple[CellKey, str], list[Scores]] = {}
    gaps: dict[str, list[str]] = {}
    for study in plan.studies:
        stored, problem = None, problems.get(study.name)
        try:
            stored = stored_study(plan.study_root, study)
        except StudyError as unreadable:
            problem = unreadable
        for column, trained in shown(plan, study):
            for cell in study.cells:
                found = _runs(plan, stored, column, trained, cell, problem)
                if isinstance(found, str):
                    gaps.setdefault(found, []).append(f"{name_of(plan, cell)} {column.label}")
                else:
                    scored[cell.key, column.name] = found
    return scored, [Missing(reason, tuple(names)) for reason, names in gaps.items()]


def _runs(
    plan: TablePlan, stored: Stored | None, column: Column, trained: Column, cell: Cell, problem: SctuneError | None
) -> list[Scores] | str:
    """The scores of a cell, one for each seed, or why they are not all there."""
    if stored is not None:
        folder = stored.scores(plan.out)
        try:
            runs = [folder.read(column, cell, seed) for seed in stored.plan.seeds]
        except DataError as damaged:
            return str(damaged)
        complete = [run for run in runs if run is not None]
        if len(complete) == len(runs):
            return complete
        trial = stored.trials().get(trained.name)
        if trial is not None and trial.state == "FAIL":
            return stored.why_failed(trial)
    return str(problem) if problem is not None else "not finished; run the same command again"


def name_of(plan: TablePlan, cell: Cell) -> str:
    """A cell as messages call it."""
    block = next(block for block in plan.blocks if cell in block.cells)
    return cell_name(block, cell)
