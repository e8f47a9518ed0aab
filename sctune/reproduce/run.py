"""Running a table: its studies through the search's driver, every test image scored once, the table written."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sctune.errors import AllTrialsFailedError, CheckpointError, ConfigError, DataError, SctuneError, StudyError
from sctune.reproduce.cells import Cell
from sctune.reproduce.columns import Column, before_training
from sctune.reproduce.plan import TablePlan, cell_name
from sctune.reproduce.results import Result, table_results
from sctune.reproduce.scores import ScoreFolder, score_trial
from sctune.reproduce.statistics import Scores
from sctune.reproduce.studies import StudyPlan, write_space
from sctune.reproduce.tables import Missing, csv_text, markdown
from sctune.search.leaderboard import TrialRow
from sctune.search.result import StudyResult
from sctune.search.stored import load_result
from sctune.search.study import Study, list_studies
from sctune.train.evaluate import auroc

Say = Callable[[list[str]], None]

OF_ONE_STUDY = (AllTrialsFailedError, CheckpointError, DataError, StudyError)
"""Errors that leave the other studies of a table untouched."""

CSV_NAME, MARKDOWN_NAME, PICTURE_NAME = "table.csv", "table.md", "table.png"


@dataclass(frozen=True)
class Outcome:
    """What a command gave. stopped: interrupted, and the same command goes on."""

    plan: TablePlan
    results: tuple[Result, ...]
    missing: tuple[Missing, ...]
    stopped: bool

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `--json`."""
        header = self.plan.header
        return {
            "format_version": 1,
            "table": header.table,
            "profile": header.profile,
            "shuffled_labels": header.shuffled,
            "header": header.lines,
            "notes": list(header.notes),
            "results": [result.to_dict() for result in self.results],
            "missing": [{"reason": gap.reason, "cells": list(gap.cells)} for gap in self.missing],
            "studies": [study.name for study in self.plan.studies],
            "out": str(self.plan.out),
            "stopped": self.stopped,
        }


def run_table(plan: TablePlan, say: Say, console: Console | None = None) -> Outcome:
    """Train what is not trained yet, score it, and write the table; done work is never repeated.

    A study that fails is a gap of the table. Raises SctuneError where nothing at all could be run, or where the
    trouble would meet every study (weights, tracking, cluster).
    """
    _check_writable(plan.out)
    problems: dict[str, SctuneError] = {}
    stopped = False
    try:
        with ExitStack() as open_session:
            for study in plan.studies:
                try:
                    stopped = _train(plan, study, open_session, say, console)
                    if stopped:
                        break
                    _score(plan, study, say)
                except OF_ONE_STUDY as problem:
                    problems[study.name] = problem
                    say([f"{study.name}: {problem}"])
    except KeyboardInterrupt:
        stopped = True
    scored, gaps = _collect(plan, problems)
    if problems and len(problems) == len(plan.studies) and not scored:
        raise next(iter(problems.values()))
    results = tuple(table_results(plan.blocks, plan.columns, scored))
    outcome = Outcome(plan, results, (*plan.missing, *gaps), stopped)
    _write(outcome)
    return outcome


def _train(plan: TablePlan, study: StudyPlan, open_session: ExitStack, say: Say, console: Console | None) -> bool:
    """Begin or go on with a study unless it is complete; gives whether it was stopped."""
    from sctune.search.driver import resume, run_search, session
    from sctune.search.dryrun import plan_lines

    before = None
    if study.name in list_studies(plan.study_root):
        before = load_result(plan.study_root, study.name, noise=False)
        if is_complete(before, study):
            say([f"study {study.name} is complete"])
            return False
    # one cluster for all studies: starting one takes longer than a small study
    open_session.enter_context(session(None))
    at_a_time = plan.options.max_concurrent
    if before is not None:
        say([f"study {study.name}: going on"])
        return resume(study.name, study_root=plan.study_root, max_concurrent=at_a_time, console=console).stopped
    space = write_space(study, plan.out / "spaces")
    options = study.search_options(plan.setup, space, plan.study_root, at_a_time)
    return run_search(options, console, lambda made, resources: say(plan_lines(made, resources))).stopped


def is_complete(result: StudyResult, study: StudyPlan) -> bool:
    """Whether every column's trial has ended."""
    ended = [row for row in result.rows if row.state in ("COMPLETE", "FAIL")]
    return len(ended) >= len(study.columns)


def _score(plan: TablePlan, study: StudyPlan, say: Say) -> None:
    """Score every test image once with each trial's last checkpoint."""
    stored = Study.open(plan.study_root, study.name)
    folder = ScoreFolder(plan.out / "scores", study)
    trials = _trials(plan, study)
    for column, trained in _shown(plan, study):
        trial = trials.get(trained.name)
        if trial is not None and trial.state == "COMPLETE":
            for cell, seed, rows in score_trial(stored, trial, folder, column):
                labels = [label for _, label, _ in rows]
                value = auroc(labels, [score for _, _, score in rows])
                say(
                    [
                        f"scored {_name(plan, cell)}, {column.label}, seed {seed}: AUROC {value:.4f} "
                        f"({labels.count(0)} normal, {labels.count(1)} anomalous)"
                    ]
                )


def _shown(plan: TablePlan, study: StudyPlan) -> list[tuple[Column, Column]]:
    """The table's columns that a study gives, each with the column that its trial was trained for."""
    pairs = [(column, column) for column in study.columns]
    return pairs + ([(before_training(column), column) for column in study.columns] if plan.setup.shuffled else [])


def _trials(plan: TablePlan, study: StudyPlan) -> dict[str, TrialRow]:
    """Column name -> its trial, of a study that exists; the full run where there are several."""
    found: dict[str, TrialRow] = {}
    if study.name in list_studies(plan.study_root):
        for row in load_result(plan.study_root, study.name, noise=False).rows:
            column = study.column_of(row.params)
            if column is not None:
                found.setdefault(column.name, row)
    return found


def _collect(
    plan: TablePlan, problems: dict[str, SctuneError]
) -> tuple[dict[tuple[tuple[str, str | None, int], str], list[Scores]], list[Missing]]:
    """Scores of every cell that has all its seeds, and the cells that should have them and do not."""
    scored = {}
    gaps: dict[str, list[str]] = {}
    for study in plan.studies:
        folder = ScoreFolder(plan.out / "scores", study)
        trials = _trials(plan, study)
        for column, trained in _shown(plan, study):
            for cell in study.cells:
                runs = [folder.read(column, cell, seed) for seed in study.seeds]
                complete = [run for run in runs if run is not None]
                if len(complete) == len(study.seeds):
                    scored[cell.key, column.name] = complete
                else:
                    reason = _why(study, trials.get(trained.name), problems)
                    gaps.setdefault(reason, []).append(f"{_name(plan, cell)} {column.label}")
    return scored, [Missing(reason, tuple(names)) for reason, names in gaps.items()]


def _why(study: StudyPlan, trial: TrialRow | None, problems: dict[str, SctuneError]) -> str:
    if trial is not None and trial.failure:
        return f"trial {trial.number} of {study.name} failed: {trial.failure['message']}"
    if study.name in problems:
        return str(problems[study.name])
    return "not finished; run the same command again"


def _name(plan: TablePlan, cell: Cell) -> str:
    block = next(block for block in plan.blocks if cell in block.cells)
    return cell_name(block, cell)


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"--out {out}: {problem.strerror}; give a folder that can be written to") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out}: no permission to write; give another folder")


def _write(outcome: Outcome) -> None:
    """table.csv, table.md and table.png, each replaced at once."""
    from sctune.reproduce.pictures import picture

    plan = outcome.plan
    texts = {
        CSV_NAME: csv_text(plan.header, outcome.results),
        MARKDOWN_NAME: markdown(plan.header, outcome.results, outcome.missing),
    }
    for name, text in texts.items():
        staged = plan.out / f".{os.getpid()}.{name}"
        staged.write_text(text, encoding="utf-8")
        os.replace(staged, plan.out / name)
    drawn = picture(plan.header, outcome.results, plan.out / f".{os.getpid()}.{PICTURE_NAME}")
    os.replace(drawn, plan.out / PICTURE_NAME)
