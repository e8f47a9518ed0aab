"""A searcher without Ray, and what Ray would tell it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sctune.report import EPOCH, OBJECTIVE
from sctune.search.run.searcher import Observer, StudySearcher
from sctune.search.study.study import Study
from tests.builders import ANYWHERE, make_manifest, make_space

EPOCHS = 3


def make_study(tmp_path: Path, parameters: dict[str, Any], trials: int, sampler: str = "tpe", **space: Any) -> Study:
    """A new study of these parameters; `space` are further keys of the space's file."""
    loaded = make_space(tmp_path, parameters=parameters, set=ANYWHERE, **space)
    return Study.create(tmp_path / "root", make_manifest(loaded, sampler=sampler, trials=trials))


def open_searcher(study: Study, *observers: Observer) -> StudySearcher:
    """As a new launch does: everything is read from the disk again."""
    again = Study.open(study.folder.parent, study.name)
    return StudySearcher(again.manifest, again.manifest.build_space(), again.record, observers)


def result(epoch: int, value: float) -> dict[str, Any]:
    """A trial's report as Ray hands it over, flat."""
    return {
        EPOCH: epoch,
        "epochs": EPOCHS,
        OBJECTIVE: value,
        f"metrics/{OBJECTIVE}": value,
        "scores/seed42": [0.1, value],
        "config/number": 0,
        "done": epoch == EPOCHS,
    }


def run_whole(searcher: StudySearcher, trial_id: str, value: float) -> None:
    for epoch in range(1, EPOCHS):
        searcher.on_trial_result(trial_id, result(epoch, value))
    searcher.on_trial_complete(trial_id, result(EPOCHS, value))


def suggest(searcher: StudySearcher, trial_id: str) -> dict[str, Any]:
    config = searcher.suggest(trial_id)
    assert isinstance(config, dict)
    return config
