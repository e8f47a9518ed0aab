"""Trainings beside those of a confirmation, as Ray tasks: on all anomalies of the development pool, and in folds of it.

Each leaves a file in the confirmation's folder when it has ended; what is there is not trained again.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sctune.config import Task, TrialConfig
from sctune.confirm.results import confirm_folder
from sctune.data.split import Split, split_for
from sctune.errors import AllTrialsFailedError, EndedAtOnceError, StudyError
from sctune.files import replace_files
from sctune.search.study.content import task_digests
from sctune.search.study.study import Study
from sctune.trial.remote import FAILED, LOG
from sctune.trial.whole import LABELS, PATHS, SCORES, WEIGHTS, train_whole

Say = Callable[[list[str]], None]

FOLDER = "refit"
FOLDS = 3
FORMAT_VERSION = 1
UNSEEN_NORMALS = 10
"""Normals that are scored after each epoch of a training that nothing is selected by."""


@dataclass(frozen=True)
class Training:
    """One training. anomalies: as `data.anomalies`; task: with the seed, and the fold that is held out, None: none is,
    and the model is kept.
    """

    config: TrialConfig
    task: Task
    split: Split
    anomalies: Literal["drawn", "all"]

    @property
    def keeps(self) -> bool:
        return self.task.fold is None

    @property
    def name(self) -> str:
        return f"{self.anomalies}--{self.task.key}"

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


def fold_trainings(config: TrialConfig, task: Task, seeds: Sequence[int]) -> list[Training]:
    """On the drawn anomalies and on all, each seed in each fold over the anomalies of the development pool.

    task: of the confirmation; config: of the winner. Raises DataError where there are too few anomalies to fold.
    """
    found = []
    for anomalies in ("drawn", "all"):
        fields = {"data.anomalies": anomalies, "data.selection": "cross", "data.selection_limit": None}
        own = config.override(fields)
        for seed in seeds:
            first = task.model_copy(update={"seed": seed, "fold": 0, "folds": FOLDS})
            count = split_for(own.for_task(first), first).folds
            for fold in range(count):
                part = first.model_copy(update={"fold": fold, "folds": count})
                found.append(Training(own, part, split_for(own.for_task(part), part), anomalies))
    return found


def final_trainings(config: TrialConfig, task: Task, seeds: Sequence[int]) -> list[Training]:
    """On all anomalies of the development pool, for each seed; nothing real is left to select by, and nothing does."""
    fields = {"data.anomalies": "all", "data.selection": "proxy", "data.selection_limit": UNSEEN_NORMALS}
    own = config.override(fields)
    tasks = [task.model_copy(update={"seed": seed, "fold": None, "folds": None}) for seed in seeds]
    return [Training(own, one, split_for(own.for_task(one), one), "all") for one in tasks]


def run_trainings(
    study: Study,
    trained: Study,
    trainings: Sequence[Training],
    say: Say,
    address: str | None = None,
    max_concurrent: int | None = None,
) -> dict[str, HeldOut]:
    """Name -> result of each; those that an earlier call has left are read. trained: the confirmation's own study.

    An interrupt ends those that run; the others stay. Raises AllTrialsFailedError for the first that fails.
    """
    folder = confirm_folder(study) / trained.name / FOLDER
    missing = [one for one in trainings if _read(folder, one) is None]
    if missing:
        say([f"{len(missing)} trainings for the final model ({len(trainings) - len(missing)} are there already)"])
        _run(trained, missing, folder, say, address, max_concurrent)
    found = {one.name: _read(folder, one) for one in trainings}
    return {name: one for name, one in found.items() if one is not None}


def _run(
    trained: Study,
    missing: Sequence[Training],
    folder: Path,
    say: Say,
    address: str | None,
    max_concurrent: int | None,
) -> None:
    from sctune.search.cluster.connection import plan_resources
    from sctune.search.run.driver import lacking_nodes, session
    from sctune.search.run.remote import RemoteTasks

    manifest = trained.manifest
    with session(address) as warnings:
        left_out = lacking_nodes(manifest, {one.name: one.split for one in missing}, address)
        say([*warnings, *left_out.values()])
        asked = manifest.resources
        at_a_time = max_concurrent or asked.asked_concurrent
        tasks = RemoteTasks[Training](plan_resources(asked.cpus, asked.gpus, at_a_time, address is not None, left_out))
        waiting, done = deque(missing), 0
        try:
            while waiting or tasks.keys:
                while waiting and tasks.room:
                    one = waiting.popleft()
                    tasks.start(one, train_whole, _spec(trained, one), one.keeps)
                for one, answer in tasks.take():
                    done += 1
                    _keep(trained, folder, one, answer)
                    say([f"trained {one.name} ({done} of {len(missing)})"])
        except KeyboardInterrupt:
            raise EndedAtOnceError(
                f"stopped; {done} of {len(missing)} trainings for the final model have ended and are kept: the same "
                "command goes on with the others"
            ) from None
        finally:
            tasks.cancel()


def _spec(trained: Study, one: Training) -> dict[str, Any]:
    from sctune.search.run.launch import trial_spec

    space = trained.manifest.build_space()
    shared = trial_spec(trained, space, {one.task.key: one.split}, [])
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


def _keep(trained: Study, folder: Path, one: Training, answer: dict[str, Any]) -> None:
    if FAILED in answer:
        log = "\n".join(answer.get(LOG, ()))
        raise AllTrialsFailedError(
            f"{trained.name}: the training {one.name} for the final model failed: {answer[FAILED]['message']}"
        ) from StudyError(log)
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
