"""A study as the pages show it: what was asked for, what happened, what it cost. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from sctune.errors import DataError
from sctune.metrics.merit import full_runs
from sctune.metrics.objective import Objective
from sctune.search.study.driver import Launches, running_driver
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.record import TAKEN, reports_of
from sctune.search.study.references import Reference, read_references
from sctune.search.study.result import StudyResult, study_result
from sctune.search.study.splits import selection_labels, study_splits
from sctune.search.study.study import Study
from sctune.tracking.server import safe_uri

STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")


@dataclass(frozen=True)
class Cost:
    """Hours of cores and GPUs that training and scoring took, and what early stopping saved of them.

    saved_*: epochs that stopped trials did not run, at their own seconds per epoch; saved_share: of the epochs of all
    ended trials (StudyResult.saved_share). epochs: run in all. reference_seconds: of the references, which are counted
    in the hours.
    """

    core_hours: float
    gpu_hours: float
    saved_core_hours: float
    saved_gpu_hours: float
    saved_share: float
    epochs: int
    reference_seconds: float = 0.0

    @property
    def unit(self) -> str:
        """What is counted for people: GPU-hours where GPUs were used, else core-hours."""
        return "GPU-hours" if self.gpu_hours else "core-hours"

    @property
    def hours(self) -> float:
        return self.gpu_hours or self.core_hours

    @property
    def saved_hours(self) -> float:
        return self.saved_gpu_hours if self.gpu_hours else self.saved_core_hours


@dataclass(frozen=True)
class StudyView:
    """labels: task key -> labels of the scored images, None where the data are gone."""

    study: Study
    trials: tuple[FrozenTrial, ...]
    result: StudyResult
    labels: Mapping[str, Sequence[int]] | None
    launches: Launches
    cost: Cost

    @property
    def manifest(self) -> StudyManifest:
        return self.study.manifest

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def objective(self) -> Objective:
        return self.result.objective

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state, those states that occur."""
        found = {state: sum(row.state == state for row in self.result.rows) for state in STATES}
        return {state: count for state, count in found.items() if count}

    def scores(self, number: int) -> Mapping[str, Sequence[float]]:
        """Task key -> scores of the selection images at the trial's last epoch; empty where there are none."""
        trial = next(trial for trial in self.trials if trial.number == number)
        scores: Mapping[str, Sequence[float]] = trial.user_attrs.get("scores", {})
        return scores


def view_study(root: Path, name: str, storage: str | None = None) -> StudyView:
    """A study as it stands now, run by a driver or not. storage: URL of the record of one that another machine began.

    Raises StudyError for a missing study; where the data are gone there are no standard errors, and a note says so.
    """
    study = Study.open(root, name, storage)
    driver = running_driver(study)
    notes: list[str] = []
    labels = None
    try:
        labels = selection_labels(study.manifest, study_splits(study.manifest))
    except DataError as problem:
        notes.append(f"no standard errors: {problem}")
    try:
        trials = tuple(study.record.load())
        references = read_references(study.manifest, study.record.load_references())
    finally:
        study.record.close()
    notes += [study.record.foreign_note] if study.record.foreign_note else []
    seconds = sum(launch.seconds or 0.0 for launch in study.manifest.launches)
    uri = safe_uri(study.manifest.tracking_uri)
    result = study_result(study, trials, labels, seconds, tracking_uri=uri, notes=notes, references=references)
    launches = Launches(study.manifest.launches, driver)
    return StudyView(
        study, trials, result, labels, launches, cost_of(study.manifest, trials, result.saved_share, references)
    )


def cost_of(
    manifest: StudyManifest,
    trials: Sequence[FrozenTrial],
    saved_share: float,
    references: Sequence[Reference] = (),
) -> Cost:
    """What the reports' own seconds come to with a trial's share of the machine."""
    epochs = manifest.full_epochs
    spent = saved = spent_gpus = saved_gpus = 0.0
    run = 0
    for trial in trials:
        reports = reports_of(trial)
        seconds = sum(float(report["metrics"].get("seconds", 0.0)) for report in reports.values())
        # a method that trains nothing skips epochs
        last = max(reports, default=0)
        # of a GPU that several trials share each pays its part
        gpus = float(trial.user_attrs.get(TAKEN, {}).get("gpus", manifest.resources.gpus))
        spent += seconds
        spent_gpus += gpus * seconds
        run += last
        if trial.state.name == "PRUNED" and last:
            left_out = max(0, epochs - last) * seconds / last
            saved += left_out
            saved_gpus += gpus * left_out
    beside = sum(one.seconds or 0.0 for one in references)
    spent += beside
    spent_gpus += manifest.resources.gpus * beside
    cores = manifest.resources.cpus / 3600
    return Cost(cores * spent, spent_gpus / 3600, cores * saved, saved_gpus / 3600, saved_share, run, beside)


def ranked(view: StudyView) -> list[TrialRow]:
    """Full runs, best first."""
    return full_runs(view.result.rows, view.objective)


def figure(value: Any) -> str:
    """A value of the configuration for people: numbers to six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def value_text(value: float | None, noise: float | None) -> str:
    """0.6771 +- 0.0785; a dash where there is no value."""
    if value is None:
        return "-"
    return f"{value:.4f}" if noise is None else f"{value:.4f} +- {noise:.4f}"
