"""Trainings beside those of a confirmation, as Ray tasks: on all anomalies of the development pool, and in folds of it.

Each leaves a file in the confirmation's folder when it has ended; what is there is not trained again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sctune.config import Task, TrialConfig
from sctune.confirm.results import confirm_folder
from sctune.data.split import Split, split_for
from sctune.errors import DataError, EndedAtOnceError
from sctune.files import replace_files
from sctune.search.study.content import task_digests
from sctune.search.study.driver import stop_requests
from sctune.search.study.study import Study
from sctune.trial.published.taking import Published
from sctune.trial.remote import FAILED, LOG
from sctune.trial.whole import LABELS, PATHS, SCORES, WEIGHTS, train_whole

Say = Callable[[list[str]], None]

_log = logging.getLogger(__name__)

FOLDER = "refit"
FOLDS = 3
LEAST_ANOMALIES = 5
"""Of a fold: with fewer the resamples that hold some of each fold say nothing of their spread."""
FORMAT_VERSION = 1
SCORED_NORMALS = 10
"""Normals that are scored after each epoch of a training that nothing is selected by."""


@dataclass(frozen=True)
class Training:
    """One training. candidate: whose configuration it is; task: with the seed, and the fold that is held out, None:
    none is, and the model is kept.
    """

    candidate: str
    config: TrialConfig
    task: Task
    split: Split

    @property
    def anomalies(self) -> str:
        return self.config.data.anomalies

    @property
    def keeps(self) -> bool:
        return self.task.fold is None

    @property
    def name(self) -> str:
        return f"{self.candidate}--{self.anomalies}--{self.task.key}"

    @property
    def digest(self) -> str:
        """Of all that its result follows from."""
        what = [self.config.flat(), self.task.model_dump(), self.split.digest]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class HeldOut:
    """Scores of the held-out images of a training: paths, labels and scores [N]; weights: file of its model."""

    task: Task
    paths: tuple[str, ...]
    labels: np.ndarray
    scores: np.ndarray
    weights: Path


def fold_trainings(candidate: str, config: TrialConfig, task: Task, seeds: Sequence[int]) -> list[Training]:
    """As the configuration has it, each seed in each fold over the anomalies of the development pool.

    task: of the confirmation. Raises DataError where there are no folds, or too small ones.
    """
    found = [part for seed in seeds for part in _folds(candidate, config, task, seed)]
    if any(sum(file.label for file in one.split.selection) < LEAST_ANOMALIES for one in found):
        raise DataError(f"a fold of the development pool would hold out fewer than {LEAST_ANOMALIES} anomalies")
    return found


def refit_folds(single: Sequence[Training]) -> list[Training]:
    """The same folds, trained on all anomalies outside of them; DataError where that is what they are trained on."""
    found = []
    for one in single:
        config = one.config.override({"data.anomalies": "all"})
        found.append(Training(one.candidate, config, one.task, split_for(config.for_task(one.task), one.task)))
    if all(a.split.digest == b.split.digest for a, b in zip(single, found, strict=True)):
        raise DataError("with a fold held out no more anomalies are left than the single model is trained on")
    return found


def _folds(candidate: str, config: TrialConfig, task: Task, seed: int) -> list[Training]:
    own = config.override({"data.selection": "cross", "data.selection_limit": None})
    first = task.model_copy(update={"seed": seed, "fold": 0, "folds": FOLDS})
    try:
        count = split_for(own.for_task(first), first).folds
    except DataError as problem:
        raise DataError(f"the anomalies of the development pool cannot be folded ({problem})") from None
    parts = [first.model_copy(update={"fold": fold, "folds": count}) for fold in range(count)]
    return [Training(candidate, own, part, split_for(own.for_task(part), part)) for part in parts]


def final_trainings(candidate: str, config: TrialConfig, task: Task, seeds: Sequence[int]) -> list[Training]:
    """On all anomalies of the development pool, for each seed; nothing real is left to select by, and nothing does."""
    fields = {"data.anomalies": "all", "data.selection": "proxy", "data.selection_limit": SCORED_NORMALS}
    own = config.override(fields)
    tasks = [task.model_copy(update={"seed": seed, "fold": None, "folds": None}) for seed in seeds]
    return [Training(candidate, own, one, split_for(own.for_task(one), one)) for one in tasks]


def stored(study: Study, trained: Study, trainings: Sequence[Training]) -> dict[str, HeldOut]:
    """Name -> result of those that have been run, here; the others are left out."""
    folder = confirm_folder(study) / trained.name / FOLDER
    found = {one.name: _read(folder, one) for one in trainings}
    return {name: one for name, one in found.items() if one is not None}


def run_trainings(
    study: Study,
    trained: Study,
    trainings: Sequence[Training],
    say: Say,
    address: str | None = None,
    max_concurrent: int | None = None,
) -> dict[str, str]:
    """Run those that an earlier call has not left; gives name -> what went wrong of those that failed.

    trained: the confirmation's own study, of which this process is the driver meanwhile: `sctune stop` finds it, and
    no second one trains the same. An interrupt ends those that run, and EndedAtOnceError says so.
    """
    if len(stored(study, trained, trainings)) == len(trainings):
        return {}
    ended: list[str] = []
    # the one signal handler until Ray has its own, the other when it has
    with _terminated_as_interrupted(), trained.lock():
        # read again: who had the lock a moment ago may have trained them
        done = stored(study, trained, trainings)
        missing = [one for one in trainings if one.name not in done]
        if not missing:
            return {}
        say([f"{len(missing)} trainings for the final model ({len(done)} are there already)"])
        folder = confirm_folder(study) / trained.name / FOLDER
        try:
            return _run(trained, missing, folder, say, address, max_concurrent, ended)
        except (KeyboardInterrupt, SystemExit):  # the second by Ray, where it starts or ends
            raise EndedAtOnceError(
                f"stopped; {len(ended)} of {len(missing)} trainings for the final model have ended and are kept: the "
                "same command goes on with the others"
            ) from None


def _run(
    trained: Study,
    missing: Sequence[Training],
    folder: Path,
    say: Say,
    address: str | None,
    max_concurrent: int | None,
    ended: list[str],
) -> dict[str, str]:
    """ended: gets the names of those that have."""
    from sctune.search.cluster.connection import plan_resources
    from sctune.search.run.driver import check_versions, checked_nodes, on_cluster, session
    from sctune.search.run.publisher import publishing
    from sctune.search.run.remote import RemoteTasks

    check_versions(trained)
    manifest = trained.manifest
    with session(address) as warnings, _terminated_as_interrupted(), stop_requests(trained):
        asked = manifest.resources
        nodes = checked_nodes(manifest, {one.name: one.split for one in missing}, address, asked.gpus)
        say([*warnings, *nodes.lines])
        at_a_time = max_concurrent or asked.asked_concurrent
        tasks = RemoteTasks[Training](
            plan_resources(asked.cpus, asked.gpus, at_a_time, address is not None, nodes.left_out)
        )
        splits, space = {one.name: one.split for one in missing}, manifest.build_space()
        waiting, failed = deque(missing), {}
        with publishing(trained, space, splits, on_cluster(address), lambda line: say([line])) as published:
            try:
                while waiting or tasks.keys:
                    while waiting and tasks.room:
                        one = waiting.popleft()
                        tasks.start(one, train_whole, _spec(trained, one, published), one.keeps)
                    for one, answer in tasks.take():
                        if FAILED in answer:
                            failed[one.name] = answer[FAILED]["message"]
                            _log.warning("training %s failed: %s", one.name, "\n".join(answer.get(LOG, ())))
                        else:
                            _keep(folder, one, answer)
                        ended.append(one.name)
                        how = "failed" if FAILED in answer else "trained"
                        say([f"{how}: {one.name} ({len(ended)} of {len(missing)})"])
            finally:
                tasks.cancel()
    return failed


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does, until ray.init sets a handler of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _spec(trained: Study, one: Training, published: Published | None) -> dict[str, Any]:
    from sctune.search.run.launch import trial_spec

    space = trained.manifest.build_space()
    shared = trial_spec(trained, space, {one.task.key: one.split}, [], published)
    config = one.config
    if trained.manifest.resources.gpus == 0 and config.runtime.device == "auto":
        config = config.override({"runtime.device": "cpu"})
    return shared.model_copy(
        update={
            "config": config.model_dump(),
            "tasks": [one.task],
            "contents": task_digests({one.task.key: one.split}),
            "stop_key": "",
        }
    ).model_dump()


def _keep(folder: Path, one: Training, answer: dict[str, Any]) -> None:
    content = {
        "format_version": FORMAT_VERSION,
        "digest": one.digest,
        **{name: answer[name] for name in (PATHS, LABELS, SCORES)},
    }
    writers: dict[Path, Callable[[Path], object]] = {}
    if one.keeps:
        # before the file that says that it is there
        writers[_weights(folder, one)] = lambda path: path.write_bytes(answer[WEIGHTS])
    writers[folder / f"{one.name}.json"] = lambda path: path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    replace_files(writers, "--study-root")


def _weights(folder: Path, one: Training) -> Path:
    return folder / f"{one.name}.safetensors"


def _read(folder: Path, one: Training) -> HeldOut | None:
    """None where it is not there whole, or of something else."""
    try:
        content = json.loads((folder / f"{one.name}.json").read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION or content["digest"] != one.digest:
            return None
        if one.keeps and not _weights(folder, one).is_file():
            return None
        labels, scores = np.array(content[LABELS], int), np.array(content[SCORES], float)
        return HeldOut(one.task, tuple(content[PATHS]), labels, scores, _weights(folder, one))
    except (OSError, ValueError, KeyError, TypeError):
        return None
