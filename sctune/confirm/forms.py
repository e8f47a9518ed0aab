"""What a final form of the winner is worth on development images, and the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from safetensors.torch import load_file

from sctune.config import Task, TrialConfig
from sctune.confirm.final import Compared, Final, FinalTest, Form
from sctune.confirm.refit import HeldOut, Say, Training, final_trainings, fold_trainings, run_trainings
from sctune.confirm.results import ChosenModel, Confirmation, Ranked, confirm_folder
from sctune.confirm.scoring import read_scores, subset_of, trained_model, write_scores
from sctune.data.split import Split
from sctune.deploy.build import calibrate
from sctune.errors import CheckpointError, ConfigError, DataError
from sctune.methods.base import Fitted, Method
from sctune.methods.ensemble import Ensemble
from sctune.methods.registry import trained_member
from sctune.metrics.statistics import Scores, seeded_difference, seeded_interval
from sctune.metrics.threshold import conformal_threshold, escape_rate, false_alarm_rate
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.study import Study
from sctune.train.single import score_test
from sctune.train.trainer import Trainer


class Confirmed(NamedTuple):
    """A configuration of a confirmation with its models. study: the confirmed one; trained: the confirmation's own;
    splits: by task of `trained`; one: the configuration, row: its trial there.
    """

    study: Study
    trained: Study
    found: Confirmation
    splits: Mapping[str, Split]
    one: Ranked
    row: TrialRow

    @property
    def config(self) -> TrialConfig:
        return self.trained.manifest.config_of(self.row.params)

    def tasks(self, subset: str) -> list[Task]:
        """One task for each seed, the best by the selection objective first; of several folds the first."""
        firsts: dict[int, Task] = {}
        for task in self.trained.manifest.tasks:
            if subset_of(task) == subset:
                firsts.setdefault(task.seed, task)
        merit = self.trained.objective.merit
        return [firsts[seed] for seed in sorted(firsts, key=lambda seed: -merit(self.one.seeds[seed]))]


def make_final(
    it: Confirmed,
    subset: str,
    form: Form,
    say: Say,
    address: str | None = None,
    max_concurrent: int | None = None,
) -> Final:
    """Train what the form takes and the confirmation lacks, and compare it with the single model.

    subset: category and class (`subset_of`). Raises ConfigError where no anomaly is labelled for it, and
    AllTrialsFailedError where a training fails.
    """
    if form.refit and it.config.n_anomalies == 0:
        raise ConfigError(
            "--refit all: the anomaly-free setting has no labelled anomalies to train on; leave it out, or search in "
            "another setting"
        )
    tasks = it.tasks(subset)[: form.size]
    seeds = tuple(task.seed for task in tasks)
    if form.refit:
        finals = final_trainings(it.config, tasks[0], seeds)
        try:
            folds = fold_trainings(it.config, tasks[0], seeds)
            basis = ""
        except DataError as problem:
            folds, basis = [], f"not compared: {problem}"
        results = run_trainings(it.study, it.trained, [*folds, *finals], say, address, max_concurrent)
        held = [results[one.name] for one in folds]
        compared = _by_folds(folds, held, form) if folds else ()
        basis = basis or _folds_basis(folds, held)
    else:
        basis, compared = _by_selection(it, tasks, form)
    return Final(
        subset=subset,
        candidate=it.one.name,
        refit=form.refit,
        seeds=seeds,
        basis=basis,
        compared=compared,
    )


def final_method(it: Confirmed, final: Final, trainer: Trainer) -> tuple[Fitted, Split]:
    """The final model, and what it was trained on; trainer: of the winner's single model.

    Raises CheckpointError where a member is gone.
    """
    tasks = [task for task in it.tasks(final.subset) if task.seed in final.seeds]
    if final.refit:
        trainings = final_trainings(it.config, tasks[0], final.seeds)
        results = run_trainings(it.study, it.trained, trainings, lambda lines: None)
        members = [_loaded(trainer, results[one.name]) for one in trainings]
        split = trainings[0].split
    else:
        members = [trained_model(it.trained, it.row, task, it.splits[task.key]).method for task in tasks]
        split = it.splits[tasks[0].key]
    return (Ensemble(members) if len(members) > 1 else members[0]), split


def test_final(it: Confirmed, final: Final, chosen: ChosenModel, say: Say) -> Final:
    """The final model on the test images, beside the single model that was `chosen`; the look is the caller's."""
    task = next(task for task in it.trained.manifest.tasks if task.key == chosen.task)
    trainer = trained_model(it.trained, it.row, task, it.splits[task.key])
    method, _ = final_method(it, final, trainer)
    rows = score_test(trainer, method)
    file = f"{it.trained.name}/{final.candidate}--{final.form.slug}--{task.key}.csv"
    write_scores(confirm_folder(it.study) / file, rows)
    say([f"scored {len(rows)} test images with {final.candidate}, {final.form.name}"])
    paths, labels, single = read_scores(confirm_folder(it.study) / chosen.scores)
    scores = np.array([score for _, _, score in rows])
    own, other = (Scores("test", "", tuple(paths), labels, values, task.seed) for values in (scores, single))
    calibration = calibrate(trainer, method)
    rate = it.found.false_alarm_rate
    threshold = None if calibration is None else conformal_threshold(calibration.scores, rate)
    tested = FinalTest(
        opened=datetime.now(UTC).isoformat(timespec="seconds"),
        estimate=seeded_interval([own]),
        difference=seeded_difference([own], [other]),
        threshold=None if threshold is None else threshold.to_dict(),
        escapes=None if threshold is None else escape_rate(labels, scores, threshold.value),
        false_alarms=None if threshold is None else false_alarm_rate(labels, scores, threshold.value),
        scores=file,
    )
    return final.model_copy(update={"test": tested})


def _loaded(trainer: Trainer, result: HeldOut) -> Method:
    try:
        tensors = load_file(result.weights)
    except OSError as problem:
        raise CheckpointError(f"cannot read {result.weights}: {problem}; make the final model again") from None
    return trained_member(trainer.config, trainer.device, tensors)


def _by_selection(it: Confirmed, tasks: Sequence[Task], form: Form) -> tuple[str, tuple[Compared, ...]]:
    """An ensemble of the confirmation's own models, on the images that none of them has trained on."""
    trainers = [trained_model(it.trained, it.row, task, it.splits[task.key]) for task in tasks]
    known = {file.path for one in trainers for file in one.split.train}
    shared = set.intersection(*({*one.selection.paths} for one in trainers)) - known
    paths = tuple(sorted(shared))
    columns = []
    for one in trainers:
        rows = [one.selection.paths.index(path) for path in paths]
        columns.append((one.selection.labels[rows], one.method.score(one.selection.images[rows])))
    labels = columns[0][0] if columns else np.zeros(0, int)
    if not {0, 1} <= set(labels.tolist()):
        return "not compared: no held-out anomaly is one that no member has trained on", ()
    table = {(task.seed, ""): (paths, labels, scores) for task, (_, scores) in zip(tasks, columns, strict=True)}
    basis = f"{int((labels == 0).sum())} normal and {int(labels.sum())} anomalous selection images that no member knows"
    return basis, compare_forms({"single model": table}, form)


def _by_folds(folds: Sequence[Training], held: Sequence[HeldOut], form: Form) -> tuple[Compared, ...]:
    tables: dict[str, Table] = {"single model": {}, "refit": {}}
    for one, result in zip(folds, held, strict=True):
        name = "refit" if one.anomalies == "all" else "single model"
        tables[name][result.task.seed, f"fold {result.task.fold}"] = (result.paths, result.labels, result.scores)
    return compare_forms(tables, form)


def _folds_basis(folds: Sequence[Training], held: Sequence[HeldOut]) -> str:
    normals = {path for one in held for path, label in zip(one.paths, one.labels, strict=True) if label == 0}
    anomalies = {path for one in held for path, label in zip(one.paths, one.labels, strict=True) if label == 1}
    return (
        f"{folds[0].task.folds} folds over {len(anomalies)} anomalies of the development pool, beside {len(normals)} "
        f"selection normals"
    )


Table = dict[tuple[int, str], tuple[tuple[str, ...], np.ndarray, np.ndarray]]
"""Seed and fold -> paths, labels and scores."""


def compare_forms(tables: Mapping[str, Table], form: Form) -> tuple[Compared, ...]:
    """Each form of each table, with its paired difference to the first table's single models."""
    base = _runs(tables["single model"])
    found = []
    for name, table in tables.items():
        runs = _runs(table)
        gap = None if name == "single model" else seeded_difference(runs, base)
        found.append(Compared(name=name, estimate=seeded_interval(runs), difference=gap))
        if form.size > 1:
            means = _means(table)
            own = Form(name == "refit", form.size).name
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
