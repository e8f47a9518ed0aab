"""The files of a study that has ended: pictures and tables of the study, pictures and the model of its best trial."""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from safetensors.torch import save_file

from sctune.config import yaml_text
from sctune.data.split import Split
from sctune.deploy.build import model_parts
from sctune.deploy.card import CardFacts, model_card
from sctune.deploy.model import ModelParts, write_parts
from sctune.errors import CheckpointError, SctuneError, StudyError
from sctune.files import is_disk_full, staged_files
from sctune.search.reconcile.delivery import BEST, FIGURES, WEIGHTS, write_model
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.references import read_references
from sctune.search.study.result import StudyResult, study_result
from sctune.search.study.splits import selection_labels, study_splits
from sctune.search.study.study import Study
from sctune.tracking import plots
from sctune.tracking.callback import TrackingCallback
from sctune.tracking.leaderboard import leaderboard_csv, leaderboard_markdown, optuna_plots
from sctune.tracking.server import safe_uri
from sctune.train.gallery import PseudoExample, pseudo_examples
from sctune.train.trainer import Trainer
from sctune.trial.checkpoint import TrialStore

BEST_MODEL, COPIES = "best model", "MLflow's copies"
"""What may meet a full disk at the end, beside the figures."""

_log = logging.getLogger(__name__)


def finish_files(study: Study, tracking: TrackingCallback) -> list[str]:
    """Make the files that the last launch had no room for, and close it as done; gives notes for the user.

    Raises DataError where the images changed, StudyError where the disk is still full.
    """
    manifest, trials = study.manifest, study.record.load()
    splits = study_splits(manifest)
    labels = selection_labels(manifest, splits)
    uri = safe_uri(manifest.tracking_uri)
    references = read_references(manifest, study.record.load_references())
    result = study_result(study, trials, labels, 0.0, exhausted=None, tracking_uri=uri, references=references)
    made = Making()
    made.files(study, splits, result, trials, labels, tracking)
    if made.unwritten:
        raise StudyError(f"the disk is still full: {', '.join(made.unwritten)} could not be written")
    last = manifest.launches[-1]
    study.end_launch(last.ended or last.started, "done")
    return made.notes


class Making:
    """The files at the end of a study, made one kind after the other. unwritten: those that met a full disk."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.unwritten: list[str] = []

    def files(
        self,
        study: Study,
        splits: dict[str, Split],
        result: StudyResult,
        trials: list[FrozenTrial],
        labels: dict[str, list[int]],
        tracking: TrackingCallback,
    ) -> None:
        """Pictures and tables of the study, and the files of its best trial; the tracking is told what was made."""
        figures = study.folder / FIGURES
        if result.rows and self.tried(FIGURES, lambda: _study_figures(result, trials, figures)):
            tracking.on_artifact(None, figures, "study")
        if result.best is not None:
            self.tried(BEST_MODEL, lambda: _best_files(study, splits, result, labels, tracking))

    def tried(self, what: str, work: Callable[[], list[str]]) -> bool:
        """Whether `work` was done; its error is logged, a bug's with its traceback, and noted: the study is whole."""
        try:
            self.notes += work()
        except Exception as problem:
            if is_disk_full(problem):
                _log.info("%s could not be written: %s", what, problem)
                self.unwritten.append(what)
            elif isinstance(problem, SctuneError):
                _log.warning("%s could not be made: %s", what, problem)
                self.notes.append(f"{what} could not be made: {problem}")
            else:
                _log.exception("%s could not be made", what)
                self.notes.append(f"{what} could not be made: {problem}")
            return False
        return True


def best_trainer(manifest: StudyManifest, splits: dict[str, Split], number: int, params: dict[str, Any]) -> Trainer:
    """The trainer of a trial's first task with the trained weights of its checkpoint; raises CheckpointError."""
    task = manifest.tasks[0]
    saved = TrialStore(manifest.storage_path, number).load_latest(only=task.key)
    if saved is None:
        raise CheckpointError(f"trial {number} has no checkpoint any more")
    trainer = Trainer(manifest.config_of(params), task, split=splits[task.key], objective=manifest.build_objective())
    trainer.load_state(*saved.tasks[task.key])
    return trainer


def _study_figures(result: StudyResult, trials: list[FrozenTrial], folder: Path) -> list[str]:
    objective = result.objective
    shown = optuna.create_study(direction=objective.direction)
    shown.add_trials([trial for trial in trials if trial.state.is_finished()])
    with staged_files(folder) as staging:
        plots.search_picture(result.rows, staging / "search.png", objective)
        plots.learning_curves(result.rows, staging / "learning_curves.png", objective)
        leaderboard_csv(result.rows, staging / "leaderboard.csv", objective)
        table = leaderboard_markdown(result.rows, objective)
        (staging / "leaderboard.md").write_text(table, encoding="utf-8")
        optuna_plots(shown, staging)
    return []


def _best_files(
    study: Study,
    splits: dict[str, Split],
    result: StudyResult,
    labels: dict[str, list[int]],
    tracking: TrackingCallback,
) -> list[str]:
    """Pictures, weights and scores of the best trial in the study's folder and its run; gives notes for the user."""
    manifest, best = study.manifest, result.best
    assert best is not None
    folder = study.folder / BEST
    # what lies there may be of another trial, and must not be taken for this one's
    shutil.rmtree(folder, ignore_errors=True)
    try:
        trainer = best_trainer(manifest, splits, best.number, best.params)
    except SctuneError as problem:
        return [f"no pictures and no model of trial {best.number}: {problem}"]
    with staged_files(folder) as staging:
        parts, meta = _model_files(study, trainer, result, labels[trainer.task.key], staging)
    # last: it says that the model is there
    proof = write_model(study, meta | {"params": best.params})
    tracking.on_artifact(best.number, folder, BEST, proof)
    return [] if parts.threshold is None else [parts.threshold.line()]


def _model_files(
    study: Study, trainer: Trainer, result: StudyResult, labels: list[int], folder: Path
) -> tuple[ModelParts, dict[str, Any]]:
    """Write pictures, weights and parts of a model; gives the parts, and what registering it takes besides."""
    manifest, best = study.manifest, result.best
    assert best is not None
    scores = _pictures(trainer, labels, folder, manifest.data.attribution)
    save_file({k: v.cpu().contiguous() for k, v in trainer.method.model_state().items()}, folder / WEIGHTS)
    meta = {
        "study": study.name,
        "trial": best.number,
        result.objective.metric: best.value,
        "selection_scores": scores,
        "licence": manifest.data.licence,
        "attribution": manifest.data.attribution,
    }
    parts = model_parts(trainer, meta)
    write_parts(folder, replace(parts, card=_card(parts, trainer, study, result)))
    return parts, meta


def _card(parts: ModelParts, trainer: Trainer, study: Study, result: StudyResult) -> str:
    manifest, best = study.manifest, result.best
    assert best is not None and best.value is not None
    noise = "" if result.noise is None else f" +- {result.noise:.4f} (standard error over the images)"
    label = result.objective.label
    facts = CardFacts(
        config=trainer.config,
        data=manifest.data.model_dump(),
        counts=trainer.split.summary(),
        split={"split": trainer.split.digest, "partition seed": manifest.partition_seed},
        results={f"{label} on the selection images ({manifest.selection.mode})": f"{best.value:.4f}{noise}"},
        extra=(
            f"the best of {len(result.rows)} trials by that {label}, which is therefore {result.objective.flattered}; "
            f"`sctune confirm {study.name}` measures it anew",
            *([] if result.verdict is None else [result.verdict]),
        ),
    )
    return model_card(parts, facts)


def _pictures(trainer: Trainer, labels: list[int], folder: Path, attribution: str | None) -> dict[str, float]:
    """ROC curve, score histogram, gallery, scores and configuration; gives the score of each selection image."""
    folder.mkdir(exist_ok=True)
    # as the registered model will score them, one by one
    scores = trainer.method.score(trainer.selection.images)
    if any(labels):
        plots.roc_curve(np.array(labels), scores, folder / "roc.png")
    plots.score_histogram(np.array(labels), scores, folder / "scores.png")
    rows = [plots.GalleryRow(*_fields(example)) for example in pseudo_examples(trainer)]
    if rows:
        plots.gallery(rows, folder / "pseudo_anomalies.png", attribution)
    (folder / "config.yaml").write_text(yaml_text(trainer.config.document()), encoding="utf-8")
    with (folder / "selection_scores.csv").open("w", newline="", encoding="utf-8") as stream:
        columns = (trainer.selection.paths, labels, scores.tolist())
        csv.writer(stream).writerows([("path", "label", "score"), *zip(*columns, strict=True)])
    return dict(zip(trainer.selection.paths, scores.tolist(), strict=True))


def _fields(example: PseudoExample) -> tuple[Any, ...]:
    return example.donor, example.receiver, example.saliency, example.mask, example.result
