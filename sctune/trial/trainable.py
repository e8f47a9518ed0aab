"""The Ray side of a trial: one actor runs many trials, one epoch of every task per step.

Checkpoints are ours (trial/checkpoint.py), keyed by the Optuna number: a later attempt finds the latest one by
itself, and Ray's own checkpointing and retries stay unused.
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections import deque
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import torch
from pydantic import BaseModel, ConfigDict
from ray import tune

from sctune.backbones.weights import resolve_weights
from sctune.config import Task, TrialConfig
from sctune.data.digests import data_digest
from sctune.data.pools import Files
from sctune.data.split import Split, split_for
from sctune.errors import ChangedDataError, ClusterError, ConfigError, DataError, PlaceError, StoppedError, StorageError
from sctune.files import file_sha256
from sctune.metrics.objective import DEFAULT, Objective, find_objective
from sctune.report import FAILURE, REPORT, VALUE, EpochReport, Origin, TrialFailure, merge_reports
from sctune.train.trainer import Trainer
from sctune.trial.checkpoint import TrialStore
from sctune.trial.step_log import StepLog
from sctune.trial.stop_flag import StopFlag
from sctune.trial.storage import answering, reason

LAST_SAVE_S = 600.0
"""How long a trial that has ended keeps its model in memory for a storage that does not take it."""

SAVE_PAUSE_S = 5.0
_MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")

_log = logging.getLogger(__name__)

CHECKED_PACKAGES = ("sctune", "torch", "torchvision", "optuna")
"""Packages whose versions must be the same on the driver and on every worker."""


class TrialSpec(BaseModel):
    """What all trials of a launch share; plain JSON values, so that it travels without pickled objects.

    config: base TrialConfig tree; tasks: what a trial is scored on; storage: URI of the checkpoints;
    checkpoint_epochs: rungs, always saved; checkpoint_interval: seconds between other checkpoints;
    splits, contents: task key -> digest of its lists of files and of what its images hold, as the driver saw them;
    weights_sha256: of the backbone's weights file, by backbone.
    objective: name of what the study is searched by.
    stop_key: where the driver raises the flag that ends the launch's trials.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: dict[str, Any]
    tasks: list[Task]
    storage: str
    cache: str
    checkpoint_epochs: list[int]
    checkpoint_interval: float
    splits: dict[str, str]
    contents: dict[str, str] = {}
    weights_sha256: dict[str, str]
    versions: dict[str, str]
    objective: str = DEFAULT
    stop_key: str = ""


def package_versions() -> dict[str, str]:
    return {name: version(name).split("+")[0] for name in CHECKED_PACKAGES}


class SaliencyCutTrainable(tune.Trainable):
    """Ray class Trainable; `spec` is a TrialSpec as a dict.

    Its configuration is {"number", "params", "attempt", "launch", "first_launch"}: the launch's number from 1, and that
    of the launch which began the trial, 0 where an earlier version did.
    """

    def setup(self, config: dict[str, Any], spec: dict[str, Any]) -> None:
        self.spec = TrialSpec.model_validate(spec)
        self.log = StepLog.attach()
        self._begin(config)
        self._digests: dict[Path, str] = {}
        self._should_stop = StopFlag(self.spec.stop_key)
        self._node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch of every task: {VALUE, REPORT, "done"}.

        A deterministic error ends the trial with a FAILURE in the report's place, never the actor. Both travel as they
        are: Ray takes dictionaries apart.
        """
        try:
            if not self.trainers:
                self._build()
            trained = not self.pending
            if self.pending:
                report = self.pending.popleft()
            else:
                report = merge_reports({trainer.task.key: trainer.run_epoch() for trainer in self.trainers})
            if trained:
                self._save(report)
                self.sent.append(report.to_dict())
        except StoppedError:
            # the driver has stopped listening; the trial goes on from its checkpoint in the next launch
            self._drop()
            return {VALUE: float("nan"), "done": True}
        except StorageError as problem:
            return self._failure(problem.kind, problem)
        except OSError as problem:
            # no configuration makes a file or a disk: the driver tries another node
            return self._failure(PlaceError.__name__, problem)
        except Exception as problem:  # the trial's own fault: told with its traceback, and the actor lives on
            return self._failure("out of memory" if _is_out_of_memory(problem) else type(problem).__name__, problem)
        return {VALUE: report.value, REPORT: replace(report, origin=self._origin()), "done": report.last}

    def cleanup(self) -> None:
        self._drop()

    def _begin(self, config: dict[str, Any]) -> None:
        # building waits for the first step, where its errors are told as the trial's failure
        self._drop()
        self.number = int(config["number"])
        self.attempt = int(config["attempt"])
        self.launch, self.first_launch = (int(config.get(key, 0)) for key in ("launch", "first_launch"))
        self.params = dict(config["params"])
        self.saved_at = time.monotonic()
        self.sent: list[dict[str, Any]] = []
        self.pending: deque[EpochReport] = deque()

    def _drop(self) -> None:
        self.trainers: list[Trainer] = []
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _build(self) -> None:
        self._check_versions()
        objective = self._objective()
        config = TrialConfig.load(self.spec.config).override(self.params)
        weights = self._weights(config)
        trainers = []
        seen: dict[tuple[Path, Files], str] = {}
        for task in self.spec.tasks:
            split = self._split(config, task)
            self._check_content(task, split, seen)
            trainers.append(
                Trainer(
                    config,
                    task,
                    cache=Path(self.spec.cache),
                    weights=weights,
                    split=split,
                    should_stop=self._should_stop,
                    objective=objective,
                )
            )
        self.store = TrialStore(self.spec.storage, self.number)
        if self.attempt == 1:
            # left over by a trial that took this number and whose driver was killed before it was recorded
            with answering(self.spec.storage):
                self.store.clear_before(self.launch)
        saved = self.store.load_latest(self.first_launch)
        if saved is not None:
            for trainer in trainers:
                trainer.load_state(*saved.tasks[trainer.task.key])
            # the driver may have died before these reached its record; told twice they change nothing
            reports = [*saved.earlier, *([saved.report] if saved.report is not None else [])]
            self.pending = deque(map(EpochReport.from_dict, reports))
            self.sent = [dict(row) for row in reports]
        self.trainers = trainers

    def _split(self, config: TrialConfig, task: Task) -> Split:
        try:
            split = split_for(config.for_task(task), task)
        except DataError as problem:
            # the driver made the very same one, so it is the files here
            raise PlaceError(str(problem)) from None
        if split.digest != self.spec.splits[task.key]:
            raise ClusterError(f"the data of task {task.key} differ from the driver's; give every node the same files")
        return split

    def _objective(self) -> Objective:
        try:
            return find_objective(self.spec.objective)
        except ConfigError as problem:
            raise ClusterError(f"{problem}; give this node the driver's packages") from None

    def _check_versions(self) -> None:
        here = package_versions()
        wrong = [
            f"{name} {here[name]} (driver {there})" for name, there in self.spec.versions.items() if here[name] != there
        ]
        if wrong:
            raise ClusterError(f"this node has other versions than the driver: {', '.join(wrong)}; install the same")

    def _check_content(self, task: Task, split: Split, seen: dict[tuple[Path, Files], str]) -> None:
        """seen: root and files of earlier tasks -> what they hold."""
        wanted = self.spec.contents.get(task.key)
        if wanted is None:
            return
        files = (split.root, split.development)
        if files not in seen:
            paths = (file.path for file in split.development)
            seen[files] = data_digest(split.root, paths, Path(self.spec.cache))
        if seen[files] != wanted:
            raise ChangedDataError(
                f"the images of task {task.key} in {split.root} hold something else than the driver's did when it "
                "began; give every node the same files, and change none while a study runs"
            )

    def _weights(self, config: TrialConfig) -> Path | None:
        if not config.entry.looks_at("model.backbone"):
            return None
        backbone = config.model.backbone
        path = resolve_weights(backbone, config.model.weights)
        wanted = self.spec.weights_sha256.get(backbone)
        if path is not None and path not in self._digests:
            self._digests[path] = file_sha256(path)
        if path is not None and wanted is not None and self._digests[path] != wanted:
            raise ClusterError(f"{path} differs from the driver's weights; copy the same file to every node")
        return path

    def _save(self, report: EpochReport) -> None:
        """The checkpoint of an epoch where one is due. The last one is the model, so it is tried for a while.

        Raises StorageError where that is over: the driver starts the trial again, from the last checkpoint, when the
        storage is back.
        """
        end = time.monotonic() + LAST_SAVE_S
        while True:
            try:
                return self._checkpoint(report)
            except OSError as problem:
                _log.warning("no checkpoint of trial %d at epoch %d: %s", self.number, report.epoch, reason(problem))
                if not report.last:
                    return None
                if time.monotonic() >= end:
                    raise StorageError.of(problem) from None
            self._wait(SAVE_PAUSE_S)

    def _wait(self, seconds: float) -> None:
        """Raises StoppedError as soon as the launch is being stopped."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._should_stop():
                raise StoppedError("stopped while it waited for the storage")
            time.sleep(0.2)

    def _checkpoint(self, report: EpochReport) -> None:
        waited = time.monotonic() - self.saved_at
        due = report.last or report.epoch in self.spec.checkpoint_epochs or waited >= self.spec.checkpoint_interval
        if due:
            self.store.save(
                report.epoch,
                self.attempt,
                {trainer.task.key: trainer.state() for trainer in self.trainers},
                report.to_dict(),
                report.last,
                self.sent,
                self.launch,
            )
            self.saved_at = time.monotonic()

    def _failure(self, kind: str, problem: BaseException) -> dict[str, Any]:
        message = " ".join(str(problem).split())[:500]
        origin = self._origin()
        text = "".join(traceback.format_exception(problem))
        problem.__traceback__ = None
        if torch.cuda.is_initialized():
            # a GPU that is beyond repair raises here, and so takes this process with it
            torch.cuda.synchronize()
        self._drop()
        return {VALUE: float("nan"), FAILURE: TrialFailure(kind, message, text, origin), "done": True}

    def _origin(self) -> Origin:
        where = f"{self.log.where}, {self.trainers[0].device}" if self.trainers else self.log.where
        return Origin(where, self._node, tuple(self.log.take()))


def _is_out_of_memory(problem: BaseException) -> bool:
    """Of the GPU or of the machine; torch tells the latter and CUDA's libraries by their messages only."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(text in str(problem) for text in _MEMORY_MESSAGES)
