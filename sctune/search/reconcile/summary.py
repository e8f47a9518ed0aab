"""What the study's own run in MLflow says about its trials: tags, a description, and the best value as it rose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial

from sctune.errors import SctuneError
from sctune.metrics.objective import Objective
from sctune.search.study.leaderboard import best_row, leaderboard
from sctune.search.study.paired import value_se
from sctune.search.study.references import (
    Against,
    Reference,
    against_best,
    best_reference,
    reference_line,
    verdict_line,
)
from sctune.search.study.result import study_result
from sctune.search.study.splits import selection_labels, study_splits
from sctune.search.study.study import Study
from sctune.tracking.events import NOTE
from sctune.tracking.note import study_note


def summary(
    study: Study,
    trials: Sequence[FrozenTrial],
    noise: float | None,
    references: Sequence[Reference] = (),
    against: Against | None = None,
) -> dict[str, Any]:
    """Arguments of TrackingCallback.on_study_end besides the status; noise: standard error of the best value.

    against: the best trial against the best of the references.
    """
    objective = study.objective
    rows = leaderboard(trials, objective)
    best = best_row(rows, objective)
    saved = study_result(study, trials, None, 0.0, tracking_uri="").saved_share
    tags = {"trials": str(len(trials)), "epochs_saved": f"{saved:.3f}"}
    verdict = verdict_line(references, against, best is not None, objective)
    beside = [("beside the trials", reference_line(one, None, objective)) for one in references]
    beside += [] if verdict is None else [("against the references", verdict)]
    tags[NOTE] = study_note(study.name, rows, noise, [*_facts(study), *beside], objective)
    if best is not None:
        tags |= {"best_trial": str(best.number), "best_value": repr(best.value)}
    rival = best_reference(references, objective)
    if rival is not None and verdict is not None:
        tags |= {"best_reference": rival.name, "best_reference_value": repr(rival.value), "verdict": verdict}
    figures = [(f"reference/{one.name}", one.value, one.told) for one in references if one.value is not None]
    return {"tags": tags, "points": best_points(trials, objective), "figures": figures}


def stored_summary(study: Study, trials: Sequence[FrozenTrial], references: Sequence[Reference]) -> dict[str, Any]:
    """The same of a study at rest; without standard errors where the data are gone."""
    objective = study.objective
    best = best_row(leaderboard(trials, objective), objective)
    if best is None:
        return summary(study, trials, None, references)
    scores = next(trial.user_attrs.get("scores", {}) for trial in trials if trial.number == best.number)
    try:
        labels = selection_labels(study.manifest, study_splits(study.manifest))
    except SctuneError:
        labels = None
    noise = value_se(scores, labels, objective) if scores and labels is not None else None
    return summary(study, trials, noise, references, against_best(best, scores, references, labels, objective))


def best_points(trials: Sequence[FrozenTrial], objective: Objective) -> list[tuple[int, float, int]]:
    """(how many trials had ended, best value of a full run by then, time in ms) for each end that has one.

    In the order of the ends, so that no later trial changes a point.
    """
    ended = [trial for trial in trials if trial.datetime_complete is not None]
    ended.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    best, points = None, []
    for step, trial in enumerate(ended, 1):
        if trial.state.name == "COMPLETE" and trial.value is not None:
            best = trial.value if best is None else objective.best((best, trial.value))
        if best is not None:
            assert trial.datetime_complete is not None
            points.append((step, float(best), int(trial.datetime_complete.timestamp() * 1000)))
    return points


def _facts(study: Study) -> list[tuple[str, str]]:
    manifest = study.manifest
    reason = f" ({manifest.selection.reason})" if manifest.selection.reason else ""
    whose = [("owner", manifest.owner), ("notes", manifest.notes)]
    return [
        *((what, text) for what, text in whose if text),
        ("data", f"{manifest.data.name}, digest {manifest.data.digest[:12]}"),
        ("selection", f"{manifest.selection.mode}{reason}"),
        ("tasks", ", ".join(task.key for task in manifest.tasks)),
        ("space", f"{manifest.space.get('name')}, profile {manifest.profile}"),
        ("search", f"sampler {manifest.sampler}, scheduler {manifest.scheduler.name}"),
    ]
