"""Running a table: its studies through the search's driver, every test image scored once, the table written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from sctune.errors import (
    AllTrialsFailedError,
    CheckpointError,
    ConfigError,
    DataError,
    EndedAtOnceError,
    NonFiniteError,
    SctuneError,
    StudyError,
    WeightsError,
)
from sctune.files import check_writable, refuse_folder, replace_files
from sctune.metrics.image_level import auroc
from sctune.reproduce.collect import Stored, collect, name_of, shown, stored_study
from sctune.reproduce.plan import TablePlan
from sctune.reproduce.results import Result, table_results
from sctune.reproduce.scores import score_trial
from sctune.reproduce.studies import StudyPlan, Trunk, write_space
from sctune.reproduce.tables import Missing, csv_text, markdown

Say = Callable[[list[str]], None]

OF_ONE_STUDY = (AllTrialsFailedError, CheckpointError, DataError, NonFiniteError, StudyError, WeightsError)
"""Errors that leave the other studies of a table untouched."""

CSV_NAME, MARKDOWN_NAME, PICTURE_NAME = "table.csv", "table.md", "table.png"


@dataclass(frozen=True)
class TableOutcome:
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
            "attributions": list(header.attributions),
            "results": [result.to_dict() for result in self.results],
            "missing": [{"reason": gap.reason, "cells": list(gap.cells)} for gap in self.missing],
            "studies": [study.name for study in self.plan.studies],
            "out": str(self.plan.out),
            "stopped": self.stopped,
        }


def run_table(plan: TablePlan, say: Say, console: Console | None = None) -> TableOutcome:
    """Train what is not trained yet, score it, and write the table; done work is never repeated.

    A study that fails is a gap of the table. Raises SctuneError where nothing at all could be run, or where the
    trouble would meet every study (tracking, cluster).
    """
    _check_writable(plan.out)
    problems: dict[str, SctuneError] = {}
    try:
        stopped = _run_studies(plan, problems, say, console)
    except KeyboardInterrupt:
        stopped = True
    scored, gaps = collect(plan, problems)
    if problems and len(problems) == len(plan.studies) and not scored:
        raise next(iter(problems.values()))
    results = tuple(table_results(plan.blocks, plan.columns, scored))
    outcome = TableOutcome(plan, results, (*plan.missing, *gaps), stopped)
    _write(outcome)
    return outcome


def _run_studies(plan: TablePlan, problems: dict[str, SctuneError], say: Say, console: Console | None) -> bool:
    """Train and score all studies; gives whether that was stopped. problems: gets what stopped one of them, by name."""
    absent: dict[Trunk | None, WeightsError] = {}
    with ExitStack() as open_session:
        for study in plan.studies:
            if study.trunk in absent:
                # said already; to ask for weights again may take long
                problems[study.name] = absent[study.trunk]
                continue
            try:
                if _train(plan, study, open_session, say, console):
                    return True
                _score(plan, study, say)
            except EndedAtOnceError:
                return True
            except OF_ONE_STUDY as problem:
                problems[study.name] = problem
                if isinstance(problem, WeightsError):
                    absent[study.trunk] = problem
                say([f"{study.name}: {problem}"])
    return False


def _train(plan: TablePlan, study: StudyPlan, open_session: ExitStack, say: Say, console: Console | None) -> bool:
    """Begin or go on with a study unless it is complete; gives whether it was stopped."""
    from sctune.search.run.driver import resume, run_search, session
    from sctune.search.run.plan_lines import plan_lines

    before = stored_study(plan.study_root, study)
    if before is not None and before.is_complete:
        _say_ended(before, say)
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


def _say_ended(stored: Stored, say: Say) -> None:
    """Say how a study ended; raises AllTrialsFailedError where that was without any model, as its first run did."""
    name, failed = stored.study.name, [stored.why_failed(trial) for trial in stored.failed]
    if failed and len(failed) == len(stored.rows):
        raise AllTrialsFailedError(f"all {len(failed)} trials of {name} failed; {failed[0]}")
    say([f"study {name} is complete" if not failed else f"study {name} has ended", *failed])


def _score(plan: TablePlan, study: StudyPlan, say: Say) -> None:
    """Score every test image once with each trial's last checkpoint."""
    stored = stored_study(plan.study_root, study)
    if stored is None:
        return
    folder, trials = stored.scores(plan.out), stored.trials()
    for column, trained in shown(plan, study):
        trial = trials.get(trained.name)
        if trial is not None and trial.state == "COMPLETE":
            for cell, seed, rows in score_trial(stored.study, trial, folder, column):
                labels = [label for _, label, _ in rows]
                value = auroc(labels, [score for _, _, score in rows])
                say(
                    [
                        f"scored {name_of(plan, cell)}, {column.label}, seed {seed}: AUROC {value:.4f} "
                        f"({labels.count(0)} normal, {labels.count(1)} anomalous)"
                    ]
                )


def _check_writable(out: Path) -> None:
    check_writable(out, f"--out {out}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"--out {out}: {problem.strerror}; give a folder that can be written to") from None
    for name in (CSV_NAME, MARKDOWN_NAME, PICTURE_NAME):
        refuse_folder(out / name)


def _write(outcome: TableOutcome) -> None:
    """table.csv, table.md and table.png: all of them or none; raises ConfigError where one cannot be written."""
    from sctune.reproduce.pictures import picture

    plan = outcome.plan
    texts = {
        CSV_NAME: csv_text(plan.header, outcome.results),
        MARKDOWN_NAME: markdown(plan.header, outcome.results, outcome.missing),
    }
    writers: dict[Path, Callable[[Path], object]] = {
        plan.out / name: partial(_write_text, text) for name, text in texts.items()
    }
    writers[plan.out / PICTURE_NAME] = partial(picture, plan.header, outcome.results)
    replace_files(writers)


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
