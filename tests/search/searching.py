"""A searcher without Ray, and what Ray would tell it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sctune.report import FAILURE, OBJECTIVE, REPORT, VALUE, EpochReport, Origin, TrialFailure
from sctune.search.rules.base import Rule
from sctune.search.run.controller import End, EndReason, TrialController
from sctune.search.run.recorder import Observer
from sctune.search.run.searcher import StudySearcher
from sctune.search.study.study import Study
from tests.builders import ANYWHERE, make_manifest, make_space

EPOCHS = 3


def make_study(tmp_path: Path, parameters: dict[str, Any], trials: int, sampler: str = "tpe", **space: Any) -> Study:
    """A new study of these parameters; `space` are further keys of the space's file."""
    loaded = make_space(tmp_path, parameters=parameters, set=ANYWHERE, **space)
    return Study.create(tmp_path / "root", make_manifest(loaded, sampler=sampler, trials=trials))


def open_searcher(study: Study, *observers: Observer, rule: Rule | None = None) -> StudySearcher:
    """As a new launch does: everything is read from the disk again."""
    again = Study.open(study.folder.parent, study.name)
    space = again.manifest.build_space()
    return StudySearcher(TrialController(again.manifest, space, again.record, observers, rule=rule))


def result(epoch: int, value: float, epochs: int = EPOCHS) -> dict[str, Any]:
    """A trial's report as Ray hands it over."""
    report = EpochReport(epoch, epochs, {OBJECTIVE: value}, {"seed42": [0.1, value]})
    return {VALUE: value, REPORT: report, "config/number": 0, "done": report.last}


def failure(kind: str, message: str, node: str = "", where: str = "") -> dict[str, Any]:
    """A trial's own failure as Ray hands it over."""
    told = TrialFailure(kind, message, "T", Origin(where, node))
    return {VALUE: float("nan"), FAILURE: told, "done": True}


def reason(searcher: StudySearcher) -> EndReason | None:
    """Why the launch ended."""
    return None if searcher.controller.end is None else searcher.controller.end.reason


def stop(searcher: StudySearcher) -> None:
    """What a signal does."""
    searcher.controller.finish(End(EndReason.STOPPED))


def run_whole(searcher: StudySearcher, trial_id: str, value: float) -> None:
    for epoch in range(1, EPOCHS):
        searcher.on_trial_result(trial_id, result(epoch, value))
    searcher.on_trial_complete(trial_id, result(EPOCHS, value))


def suggest(searcher: StudySearcher, trial_id: str) -> dict[str, Any]:
    config = searcher.suggest(trial_id)
    assert isinstance(config, dict)
    return config


def refill(rule: Rule, history: Iterable[tuple[int, int, float]]) -> None:
    """Tell a rule (number, epoch, value) of earlier launches, as the controller does where no trial has ended."""
    for number, epoch, value in history:
        rule.decide(number, epoch, value)
