"""What a final form is worth beside the single model, from the scores of held-out development images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sctune.config import Task
from sctune.confirm.escapes import Fold, Judged, judged, judged_by_folds
from sctune.confirm.final import Compared, Form
from sctune.confirm.refit import LEAST_ANOMALIES, HeldOut, Training
from sctune.deploy.build import calibrate
from sctune.methods.base import Fitted
from sctune.methods.ensemble import Ensemble
from sctune.metrics.statistics import Scores, seeded_difference, seeded_interval
from sctune.metrics.threshold import conformal_threshold
from sctune.train.single import score_files
from sctune.train.trainer import Trainer

SINGLE, REFIT = Form().name, Form(refit=True).name

Table = dict[tuple[int, str], tuple[tuple[str, ...], np.ndarray, np.ndarray]]
"""Seed and fold -> paths, labels and scores."""


class Held(NamedTuple):
    """What held-out images say. basis: these in words; rows: of each form; images: as both call them, none where there
    is no threshold. models: the single model and the form, where neither has learned from any of the images.
    """

    basis: str
    rows: tuple[Compared, ...] = ()
    images: tuple[Judged, ...] = ()
    models: tuple[Fitted, Fitted] | None = None


def by_unknown(trainers: Sequence[Trainer], tasks: Sequence[Task], form: Form, rate: float) -> Held | None:
    """An ensemble of the confirmation's own models, on development images of parts that none of them has trained on.

    None where too few of those are anomalies. trainers: of `tasks`, the single model first; rate: of false alarms.
    """
    first = trainers[0].split
    known = {file.group for one in trainers for file in (*one.split.train, *one.split.calibration)}
    files = [file for file in first.development if file.group not in known]
    columns = [score_files(one, files) for one in trainers]
    labels = np.array([label for _, label, _ in columns[0]], int)
    if int(labels.sum()) < LEAST_ANOMALIES or not (labels == 0).any():
        return None
    paths = tuple(path for path, _, _ in columns[0])
    scores = [np.array([score for _, _, score in rows]) for rows in columns]
    table: Table = {(task.seed, ""): (paths, labels, one) for task, one in zip(tasks, scores, strict=True)}
    basis = (
        f"{int((labels == 0).sum())} normal and {int(labels.sum())} anomalous development images that no member knows"
    )
    models = trainers[0].method, Ensemble([one.method for one in trainers])
    calibrations = [calibrate(trainers[0], method) for method in models]
    at = [conformal_threshold(one.scores, rate).value for one in calibrations if one is not None]
    images = judged(paths, labels, scores[0], np.mean(scores, axis=0), (at[0], at[1])) if len(at) == 2 else []
    return Held(basis, compare_forms({SINGLE: table}, form), tuple(images), models)


def by_folds(
    folds: Mapping[str, Sequence[Training]], results: Mapping[str, HeldOut], form: Form, mode: str, rate: float
) -> Held:
    """folds: name of a form of one model -> its trainings, the single model's seed first. Or why there are none."""
    tables: dict[str, Table] = {name: {} for name in folds}
    for name, trainings in folds.items():
        for one in trainings:
            held = results.get(one.name)
            if held is None:
                return Held(f"not compared: the training {one.name} failed; see the log of the confirmation")
            if not 0 < int(held.labels.sum()) < len(held.labels) or not np.isfinite(held.scores).all():
                return Held(
                    f"not compared: the held-out images of {one.name} are of one class, or have no finite score"
                )
            tables[name][one.task.seed, f"fold {one.task.fold}"] = (held.paths, held.labels, held.scores)
    images = judged_by_folds(_pairs(tables, form), rate)
    return Held(_folds_basis(folds[SINGLE], results, mode), compare_forms(tables, form), tuple(images))


def _pairs(tables: Mapping[str, Table], form: Form) -> list[Fold]:
    """Of each fold what the single model and the form say; the mean of the members where there are several."""
    single, last = tables[SINGLE], tables[REFIT if form.refit else SINGLE]
    first = next(iter(single))[0]
    found: list[Fold] = []
    for seed, fold in single:
        if seed == first:
            paths, labels, scores = single[seed, fold]
            members = [one[2] for (_, of), one in last.items() if of == fold]
            found.append((paths, labels, scores, np.mean(members, axis=0)))
    return found


def _folds_basis(folds: Sequence[Training], results: Mapping[str, HeldOut], mode: str) -> str:
    held = [results[one.name] for one in folds]
    seen = [(path, label) for one in held for path, label in zip(one.paths, one.labels, strict=True)]
    normal, anomalous = (len({path for path, of in seen if of == label}) for label in (0, 1))
    drawn = "; the single models here are trained on all drawn anomalies outside the fold" if mode == "seen" else ""
    return (
        f"{folds[0].task.folds} folds over {anomalous} anomalies of the development pool, beside {normal} selection "
        f"normals{drawn}"
    )


def compare_forms(tables: Mapping[str, Table], form: Form) -> tuple[Compared, ...]:
    """Each form of each table, with its paired difference to the first table's single models."""
    base = _runs(tables[SINGLE])
    found = []
    for name, table in tables.items():
        runs = _runs(table)
        gap = None if name == SINGLE else seeded_difference(runs, base)
        found.append(Compared(name=name, estimate=seeded_interval(runs), difference=gap))
        if form.size > 1:
            means = _means(table)
            own = Form(name == REFIT, form.size).name
            alone = [run for run in means if run.seed == means[0].seed]
            found.append(Compared(name=own, estimate=seeded_interval(alone), difference=seeded_difference(means, base)))
    return tuple(found)


def _runs(table: Table) -> list[Scores]:
    return [
        Scores(pool="development", subset=fold, paths=paths, labels=labels, scores=scores, seed=seed)
        for (seed, fold), (paths, labels, scores) in sorted(table.items())
    ]


def _means(table: Table) -> list[Scores]:
    """The ensemble in the place of each of its members: it is paired with each of them."""
    folds = sorted({fold for _, fold in table})
    means = {fold: np.mean([one[2] for (_, of), one in table.items() if of == fold], axis=0) for fold in folds}
    return _runs({(seed, fold): (*one[:2], means[fold]) for (seed, fold), one in table.items()})
