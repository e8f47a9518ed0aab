"""`sctune figures`: what a trial has learned, from its checkpoint: features, galleries, images as the method sees them.

As the paper's figures 1 and 6 (t-SNE) and 2 and 5 (galleries). Without `test` no file of the test pool is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sctune.config import Task, TrialConfig
from sctune.data.decode import Decoding
from sctune.data.images import CachedImages, ImageCache
from sctune.data.pools import Files, by_path, generator, outside, units
from sctune.data.selection import stratified
from sctune.data.split import Split
from sctune.errors import CheckpointError, ConfigError, StudyError, nearest
from sctune.manage.figure_files import GROUPS, Cloud, FigureReport, Sheet, maker_of, publish
from sctune.methods.registry import fresh_method
from sctune.paths import cache_folder
from sctune.search.study.leaderboard import TrialRow, best_row, leaderboard
from sctune.search.study.ledger import add_look, show_looks
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.splits import checked_splits
from sctune.search.study.study import Study
from sctune.tracking.run_files import log_run_files
from sctune.train.embedding import fitting_perplexity, silhouette, tsne
from sctune.train.gallery import PseudoExample, pseudo_examples
from sctune.train.trainer import Trainer
from sctune.train.views import views_of
from sctune.trial.checkpoint import Checkpoint, TrialStore, check_trained

Say = Callable[[list[str]], None]


@dataclass(frozen=True)
class FigureOptions:
    """What a user can ask of `sctune figures`.

    trial: number, None for the best; task: its key, None for the first; out: folder, None for `figures` in the
    study's; test: take the unseen anomalies from the test pool; limit: most images of a group, 1 at least.
    """

    trial: int | None = None
    task: str | None = None
    out: Path | None = None
    test: bool = False
    perplexity: float = 30.0
    limit: int = 200


@dataclass(frozen=True)
class Chosen:
    """The trial and the task whose pictures are made; saved: the trial's checkpoint."""

    row: TrialRow
    best: bool
    task: Task
    split: Split
    saved: Checkpoint


def make_figures(study_root: Path, name: str, options: FigureOptions, say: Say) -> FigureReport:
    """Make the pictures of one trial of a study, and log them to its MLflow run; the best trial's to the study's too.

    Raises StudyError for a study, trial or task that does not exist, CheckpointError where the trial's checkpoint
    is gone, DataError where the images changed, ConfigError for options that cannot be. MLflow that cannot be
    reached is a warning in the report: the files stay.
    """
    study = Study.open(study_root, name)
    manifest = study.manifest
    chosen = choose_trial(study, options)
    config = manifest.config_of(chosen.row.params)
    ledger = None
    if options.test:
        say(["test pool opened: the unseen anomalies are images that no choice may be made by"])
        opened = figure_files(chosen.split, manifest.trial_config().data.setting, options.limit, 0, test=True)
        ledger = add_look(study, "figures --test", len(opened["unseen"]), 1, decided="nothing (pictures)")
    trainer = Trainer(config, chosen.task, split=chosen.split, objective=study.objective)
    trainer.load_state(*chosen.saved.tasks[chosen.task.key])
    examples = pseudo_examples(trainer, options.limit)
    cloud = gather(trainer, examples, options.limit, options.test)
    features = _features(trainer, cloud.images, say)
    points = {panel: tsne(rows, options.perplexity) for panel, rows in features.items()}
    report = FigureReport(
        study=study.name,
        trial=chosen.row.number,
        task=chosen.task.key,
        epoch=trainer.epoch,
        value=_value(manifest, chosen, trainer.epoch),
        mode=chosen.split.mode,
        perplexity=fitting_perplexity(len(cloud.groups), options.perplexity) if features else None,
        images={group: int(cloud.of(group).sum()) for group in GROUPS},
        silhouettes={panel: silhouettes(rows, cloud) for panel, rows in features.items()},
        test_pool_opened=options.test,
        warnings=_notes(trainer.config, cloud, features),
    )
    sheet = Sheet(
        report,
        trainer.config,
        len(manifest.tasks),
        len(manifest.tasks) if manifest.replicates == 1 else 1,
        cloud,
        examples,
        points,
        views_of(trainer.method, cloud.images[cloud.looked_at]),
        manifest.data.attribution,
        study.objective,
    )
    files = publish(options.out or study.folder / "figures", sheet)
    runs = [chosen.row.number, *([None] if chosen.best else [])]
    trouble = log_run_files(manifest.tracking_uri, manifest.study_id, runs, files, "figures")
    trouble += show_looks(study, ledger) if ledger else []
    return report.finished(files, trouble)


def _value(manifest: StudyManifest, chosen: Chosen, epoch: int) -> float | None:
    """At the checkpoint: the mean over the tasks, or, where they are trained one after another, of the task itself."""
    if manifest.replicates == 1 or chosen.saved.report is None:
        return chosen.row.values.get(epoch)
    found = chosen.saved.report["metrics"].get(f"{manifest.build_objective().metric}/{chosen.task.key}")
    return None if found is None else float(found)


def _features(trainer: Trainer, images: np.ndarray, say: Say) -> dict[str, np.ndarray]:
    """Features [N, C] of the images before and after training; empty where the method has none."""
    after = trainer.method.embed(images)
    if after is None:
        return {}
    say([f"features of {len(images)} images before and after training, and their t-SNE"])
    before = fresh_method(trainer.config, trainer.device).embed(images)
    if before is None:
        return {}
    return {"before": before, "after": after}


def choose_trial(study: Study, options: FigureOptions) -> Chosen:
    """The trial, task and checkpoint that the options name; nothing is trained or read but records and lists."""
    manifest = study.manifest
    try:
        rows = leaderboard(study.record.load(), study.objective)
    finally:
        study.record.close()
    best = best_row(rows, study.objective)
    row = best if options.trial is None else next((row for row in rows if row.number == options.trial), None)
    if row is None and options.trial is None:
        raise StudyError(f"study {study.name} has no full run yet; go on with `sctune resume {study.name}`")
    if row is None:
        numbers = ", ".join(str(number) for number in sorted(row.number for row in rows)) or "none"
        raise StudyError(f"study {study.name} has no trial {options.trial}; its trials: {numbers}")
    task = _task(manifest, options.task)
    if manifest.selection.mode == "test" and not options.test:
        raise ConfigError(
            f"study {study.name} selects on its test images (--selection test), so that its figures show them; say so "
            "with --test"
        )
    saved = TrialStore(manifest.storage_path, row.number).load_latest(only=task.key)
    if saved is None:
        kept = [str(other.number) for other in rows if TrialStore(manifest.storage_path, other.number).names()]
        raise CheckpointError(
            f"trial {row.number} has no checkpoint any more: the best {manifest.keep_best} full runs and unfinished "
            f"trials keep theirs; choose one of these with --trial: {', '.join(kept) or 'none is left'}"
        )
    check_trained(saved, row.number, task)
    split = checked_splits(manifest, study.folder)[task.key]
    return Chosen(row, best is not None and best.number == row.number, task, split, saved)


def figure_files(split: Split, setting: str, limit: int, seed: int, test: bool) -> dict[str, Files]:
    """Group -> files of the pictures, at most `limit` each, drawn by the seed, sorted by path.

    normal: held out for selection; seen: trained on; unseen: in the general setting anomalies of the development
    pool whose source unit was not trained on, else none, since that pool then holds the known class at most; with
    `test` they come from the test pool.
    """
    known = units(file for file in split.train if file.label == 1)
    if test:
        unseen: Files = tuple(file for file in split.test if file.label == 1)
    elif setting == "general" and split.mode != "test":
        unseen = outside((file for file in split.development if file.label == 1), known)
    else:
        unseen = ()
    groups = {
        "normal": tuple(file for file in split.selection if file.label == 0),
        "seen": tuple(file for file in split.train if file.label == 1),
        "unseen": unseen,
    }
    return {
        name: by_path(stratified(list(files), limit, generator(seed, f"figures {name}")))
        for name, files in groups.items()
    }


def gather(trainer: Trainer, examples: list[PseudoExample], limit: int, test: bool) -> Cloud:
    """The images of all groups, decoded as the trial saw them, and the pseudo anomalies."""
    data, split = trainer.config.data, trainer.split
    chosen = figure_files(split, data.setting, limit, data.partition_seed, test)
    development = _decoded(trainer, [file.path for file in split.development])
    images, groups, names, kinds = [], [], [], []
    for group, files in chosen.items():
        if not files:
            continue
        opened = group == "unseen" and test
        cached = _decoded(trainer, [file.path for file in files]) if opened else development
        readable = [file for file in files if file.path in cached.index]
        images.append(cached.array[[cached.index[file.path] for file in readable]])
        groups += [group] * len(readable)
        names += [file.path for file in readable]
        kinds += [file.kind for file in readable]
    if examples:
        images.append(np.stack([example.result for example in examples]))
        groups += ["pseudo"] * len(examples)
        names += [f"pseudo {number}" for number in range(len(examples))]
        kinds += [maker_of(trainer.config)] * len(examples)
    return Cloud(np.concatenate(images), groups, names, kinds)


def silhouettes(features: np.ndarray, cloud: Cloud) -> dict[str, float | None]:
    """Mean silhouette of the normal images' features against those of each other group, and of all anomalies."""
    normal, seen, unseen, pseudo = (features[cloud.of(group)] for group in GROUPS)
    real = np.concatenate([seen, unseen])
    others = {"anomalies": real, "seen": seen, "unseen": unseen, "pseudo": pseudo}
    return {name: silhouette(normal, other) for name, other in others.items()}


def _task(manifest: StudyManifest, key: str | None) -> Task:
    tasks = {task.key: task for task in manifest.tasks}
    if key is not None and key not in tasks:
        raise StudyError(f"study {manifest.name} has no task {key!r}; {nearest(key, tasks)}")
    return manifest.tasks[0] if key is None else tasks[key]


def _decoded(trainer: Trainer, paths: list[str]) -> CachedImages:
    data = trainer.config.data
    cache = ImageCache(cache_folder())
    return cache.array(trainer.split.root, paths, Decoding.of(data), data.skip_corrupt)


def _notes(config: TrialConfig, cloud: Cloud, features: dict[str, np.ndarray]) -> tuple[str, ...]:
    """What the pictures lack, and why."""
    lines = []
    unchanged = bool(features) and np.array_equal(features["before"], features["after"])
    if not features:
        lines.append(f"no t-SNE: method {config.method.name} has no features of whole images")
    if not cloud.of("unseen").any():
        pool = "anomalies of the known class only" if config.data.setting == "hard" else "no other anomalies"
        lines.append(
            f"unseen anomalies are not shown: the development pool holds {pool}; --test takes them from the test pool"
        )
    if not cloud.of("pseudo").any():
        field = "augment.kind=" if config.entry.looks_at("augment.kind") else "method "
        lines.append(f"{field}{maker_of(config)} makes no pseudo anomalies")
    if unchanged and not config.entry.trains:
        lines.append(f"both panels are equal: method {config.method.name} trains nothing")
    elif unchanged and not config.entry.looks_at("model.freeze"):
        lines.append(f"both panels are equal: method {config.method.name} shows features that it does not train")
    elif unchanged:
        lines.append(
            f"both panels are equal: model.freeze={config.model.freeze} keeps all blocks up to the features fixed, "
            "and only the heads are trained"
        )
    return tuple(lines)
