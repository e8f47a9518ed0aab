"""What a final form of the winner is worth on development images, and the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from safetensors.torch import load_file

from sctune.config import Task, TrialConfig
from sctune.confirm.comparison import REFIT, SINGLE, Held, by_folds, by_unknown
from sctune.confirm.escapes import judged
from sctune.confirm.final import Final, FinalTest, Form, unfit
from sctune.confirm.gallery import DEVELOPMENT, TEST, Scene, show_escapes
from sctune.confirm.refit import (
    HeldOut,
    Say,
    Training,
    final_trainings,
    fold_trainings,
    refit_folds,
    run_trainings,
    stored,
)
from sctune.confirm.results import ChosenModel, Confirmation, Ranked, confirm_folder
from sctune.confirm.scoring import read_scores, subset_of, trained_model, write_scores
from sctune.data.split import Split
from sctune.deploy.build import calibrate
from sctune.errors import AllTrialsFailedError, CheckpointError, ConfigError, DataError
from sctune.methods.base import Fitted, Method
from sctune.methods.ensemble import Ensemble
from sctune.methods.registry import trained_member
from sctune.metrics.statistics import Scores, seeded_difference, seeded_interval
from sctune.metrics.threshold import Threshold, conformal_threshold, escape_rate, false_alarm_rate
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.study import Study
from sctune.train.single import score_test
from sctune.train.trainer import Trainer

NO_THRESHOLD = "no image was held out to set a threshold by"


class Confirmed(NamedTuple):
    """A configuration of a confirmation with its models. study: the confirmed one; trained: the confirmation's own;
    splits: by task of `trained`; one: the configuration, row: its trial there, values: its objective by task.
    """

    study: Study
    trained: Study
    found: Confirmation
    splits: Mapping[str, Split]
    one: Ranked
    row: TrialRow
    values: Mapping[str, float]

    @property
    def config(self) -> TrialConfig:
        return self.trained.manifest.config_of(self.row.params)

    def tasks(self, subset: str) -> list[Task]:
        """One task for each seed, the best by the selection objective first; of several folds the first."""
        seeds: dict[int, list[Task]] = {}
        for task in self.trained.manifest.tasks:
            if subset_of(task) == subset:
                seeds.setdefault(task.seed, []).append(task)
        means = {seed: sum(self.values[one.key] for one in folds) / len(folds) for seed, folds in seeds.items()}
        merit = self.trained.objective.merit
        return [seeds[seed][0] for seed in sorted(seeds, key=lambda seed: -merit(means[seed]))]

    def trained_on_all(self, subset: str, seeds: Sequence[int]) -> list[Training]:
        """The trainings of its refit models."""
        return final_trainings(self.one.name, self.config, self.tasks(subset)[0], seeds)


def make_final(
    it: Confirmed,
    subset: str,
    form: Form,
    say: Say,
    address: str | None = None,
    max_concurrent: int | None = None,
) -> Final:
    """Train what the form takes and the confirmation lacks, and compare it with the single model.

    subset: category and class (`subset_of`). Raises ConfigError for a form that the configuration cannot have, and
    AllTrialsFailedError where a training of a member fails.
    """
    reason = unfit(form, it.config)
    if reason is not None:
        raise ConfigError(reason)
    tasks = it.tasks(subset)[: form.size]
    seeds = tuple(task.seed for task in tasks)
    made = Final(subset=subset, candidate=it.one.name, refit=form.refit, seeds=seeds, basis="", compared=())
    held = None
    if not form.refit:
        trainers = [trained_model(it.trained, it.row, task, it.splits[task.key]) for task in tasks]
        held = by_unknown(trainers, tasks, form, it.found.false_alarm_rate)
    if held is None:
        held = _trained_and_compared(it, subset, tasks, form, say, address, max_concurrent)
    made = made.model_copy(update={"basis": held.basis, "compared": held.rows})
    say(_pictured(it, made, tasks[0], held))
    return made


def _pictured(it: Confirmed, made: Final, task: Task, held: Held) -> list[str]:
    """Lines about the picture of a form on development images. task: of the single model."""
    if not held.images:
        return [f"no picture of its escapes on development images: {held.basis if not held.rows else NO_THRESHOLD}"]
    try:
        single = trained_model(it.trained, it.row, task, it.splits[task.key])
    except CheckpointError as problem:
        return [f"no picture of its escapes on development images: {problem}"]
    return show_escapes(it.study, it.found, made, Scene(DEVELOPMENT, single, held.images, held.models))


def _trained_and_compared(
    it: Confirmed,
    subset: str,
    tasks: Sequence[Task],
    form: Form,
    say: Say,
    address: str | None,
    max_concurrent: int | None,
) -> Held:
    """What folds say of a form, after all of its trainings; raises AllTrialsFailedError as `make_final` does."""
    seeds = [task.seed for task in tasks]
    members = it.trained_on_all(subset, seeds) if form.refit else []
    folds: dict[str, list[Training]] = {}
    refused = ""
    try:
        single = fold_trainings(it.one.name, it.config, tasks[0], seeds)
        folds = {SINGLE: single, REFIT: refit_folds(single)} if form.refit else {SINGLE: single}
    except DataError as problem:
        refused = f"not compared: {problem}"
    asked = [*members, *(one for part in folds.values() for one in part)]
    failed = run_trainings(it.study, it.trained, asked, say, address, max_concurrent)
    for one in members:
        if one.name in failed:
            raise AllTrialsFailedError(f"the training {one.name} for the final model failed: {failed[one.name]}")
    if not folds:
        return Held(refused)
    results = stored(it.study, it.trained, asked)
    return by_folds(folds, results, form, it.found.mode, it.found.false_alarm_rate)


def final_method(it: Confirmed, final: Final, trainer: Trainer) -> tuple[Fitted, Split]:
    """The final model, and what its first member was trained on; trainer: of the winner's single model.

    Raises CheckpointError where a member is not here.
    """
    if final.refit:
        trainings = it.trained_on_all(final.subset, final.seeds)
        results = stored(it.study, it.trained, trainings)
        lacking = [one.name for one in trainings if one.name not in results]
        if lacking:
            raise CheckpointError(
                f"{lacking[0]}, a member of the final model, is not in {confirm_folder(it.study)}: copy that folder "
                f"from the machine that trained it, or train it with `sctune confirm {it.study.name} --again"
                f"{final.form.words}`, which is one more look at the test images"
            )
        members = [_loaded(trainer, results[one.name]) for one in trainings]
        split = trainings[0].split
    else:
        tasks = [task for task in it.tasks(final.subset) if task.seed in final.seeds]
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
    paths, labels = tuple(path for path, _, _ in rows), np.array([label for _, label, _ in rows])
    scores = np.array([score for _, _, score in rows])
    singles = _single(it, chosen, trainer, paths)
    own, before = (Scores("test", "", paths, labels, values, task.seed) for values in (scores, singles))
    calibration = calibrate(trainer, method)
    rate = it.found.false_alarm_rate
    threshold = None if calibration is None else conformal_threshold(calibration.scores, rate)
    tested = FinalTest(
        opened=datetime.now(UTC).isoformat(timespec="seconds"),
        estimate=seeded_interval([own]),
        difference=seeded_difference([own], [before]),
        threshold=None if threshold is None else threshold.to_dict(),
        escapes=None if threshold is None else escape_rate(labels, scores, threshold.value),
        false_alarms=None if threshold is None else false_alarm_rate(labels, scores, threshold.value),
        scores=file,
    )
    made = final.model_copy(update={"test": tested})
    if threshold is not None and chosen.threshold is not None:
        other = Threshold.from_dict(chosen.threshold)
        images = judged(paths, labels, singles, scores, (other.value, threshold.value))
        say(show_escapes(it.study, it.found, made, Scene(TEST, trainer, images, (trainer.method, method))))
    else:
        say([f"no picture of its escapes: {NO_THRESHOLD}"])
    return made


def _loaded(trainer: Trainer, result: HeldOut) -> Method:
    try:
        tensors = load_file(result.weights)
    except OSError as problem:
        raise CheckpointError(f"cannot read {result.weights}: {problem}; make the final model again") from None
    return trained_member(trainer.config, trainer.device, tensors)


def _single(it: Confirmed, chosen: ChosenModel, trainer: Trainer, paths: Sequence[str]) -> np.ndarray:
    """Test scores of the single model: those of the look, or made again where they lie on another machine."""
    file = confirm_folder(it.study) / chosen.scores
    if file.is_file():
        known, _, scores = read_scores(file)
        by_path = dict(zip(known, scores.tolist(), strict=True))
    else:
        by_path = {path: score for path, _, score in score_test(trainer)}
    return np.array([by_path[path] for path in paths])
