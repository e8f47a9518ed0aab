"""Trainers on this node, from what all trials of a launch share; what must be as on the driver is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from sctune.backbones.weights import IMAGENET, local_weights, resolve_weights
from sctune.config import Task, TrialConfig
from sctune.data.decode import Decoding
from sctune.data.digests import data_digest
from sctune.data.pools import Files
from sctune.data.split import Split, split_for
from sctune.errors import (
    ChangedDataError,
    ClusterError,
    ConfigError,
    DataError,
    PlaceError,
    StoppedError,
    WeightsError,
)
from sctune.files import file_sha256
from sctune.metrics.objective import DEFAULT, Objective, find_objective
from sctune.paths import cache_here
from sctune.train.card import CONTEXT_BYTES
from sctune.train.trainer import Trainer
from sctune.trial.published.taking import Published, Taking
from sctune.trial.versions import package_versions as package_versions


class TrialSpec(BaseModel):
    """What all trials of a launch share; plain JSON values, so that it travels without pickled objects.

    config: base TrialConfig tree; tasks: what a trial is scored on; storage: URI of the checkpoints;
    cache: the driver's folder of decoded images, a node's too unless its environment names SCTUNE_HOME;
    checkpoint_epochs: rungs, always saved; checkpoint_interval: seconds between other checkpoints;
    splits, contents: task key -> digest of its lists of files and of what its images hold, as the driver saw them;
    weights_sha256: of the backbone's weights file, by backbone.
    objective: name of what the study is searched by.
    stop_key: where the driver raises the flag that ends the launch's trials. published: how a node gets what it lacks,
    None: it does not.
    gpu_context: bytes that a trial's process holds on a GPU besides its tensors, as a part of its share.
    replicates: equal parts of the tasks that are trained one after another; epochs: of each, where there are several.
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
    published: Published | None = None
    replicates: int = 1
    epochs: int = 0
    gpu_context: int = CONTEXT_BYTES


class TrainerBuilder:
    """Makes trainers in a worker. Digests of weights files are kept, since they are asked for with every trial.

    What this node lacks is taken from the driver, where that publishes. Raises ClusterError and ChangedDataError where
    this node has something else than the driver, PlaceError where it lacks files, and what Trainer raises.
    """

    def __init__(self, spec: TrialSpec) -> None:
        self.spec = spec
        self.cache = cache_here(Path(spec.cache))
        self._digests: dict[Path, str] = {}
        self._taking = None if spec.published is None else Taking(spec.published, self.cache)
        self._always = spec.published is not None and spec.published.always

    def build(self, config: TrialConfig, tasks: Sequence[Task], should_stop: Callable[[], bool]) -> list[Trainer]:
        """One trainer a task, in their order; should_stop: asked before every iteration."""
        self._check_versions()
        objective = self._objective()
        if self._taking is not None:
            self._taking.pause = lambda: _stop_where_asked(should_stop)
        weights = self._weights(config)
        trainers = []
        seen: dict[tuple[Path, Files], str] = {}
        for task in tasks:
            split = self._split(config, task, seen)
            trainers.append(
                Trainer(
                    config,
                    task,
                    cache=self.cache,
                    weights=weights,
                    split=split,
                    should_stop=should_stop,
                    objective=objective,
                )
            )
        return trainers

    def _split(self, config: TrialConfig, task: Task, seen: dict[tuple[Path, Files], str]) -> Split:
        """The task's split, whose images are those of the driver; seen: as in `_check_content`."""
        if self._taking is None or not self._always:
            try:
                return self._own_split(config, task, seen)
            except ChangedDataError:
                raise
            except DataError as problem:
                # the driver made the very same one, so it is the files here
                if self._taking is None:
                    raise PlaceError(str(problem)) from None
        return self._published_split(config, task, self._taking)

    def _own_split(self, config: TrialConfig, task: Task, seen: dict[tuple[Path, Files], str]) -> Split:
        split = split_for(config.for_task(task), task)
        if split.digest != self.spec.splits[task.key]:
            raise ClusterError(f"the data of task {task.key} differ from the driver's; give every node the same files")
        self._check_content(task, split, seen)
        return split

    def _published_split(self, config: TrialConfig, task: Task, taking: Taking) -> Split:
        split = taking.split(self.spec.splits[task.key])
        if split.content != self.spec.contents.get(task.key, split.content):
            raise ClusterError(
                f"what was published of task {task.key} is not what the driver has now; resume the study"
            )
        if outliers := getattr(config.method, "outlier_root", None):
            raise PlaceError(f"method.outlier_root={outliers} is not published; mount it and the images on every node")
        taking.images(split, Decoding.of(config.data))
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
            seen[files] = data_digest(split.root, paths, self.cache)
        if seen[files] != wanted:
            raise ChangedDataError(
                f"the images of task {task.key} in {split.root} hold something else than the driver's did when it "
                "began; give every node the same files, and change none while a study runs"
            )

    def _weights(self, config: TrialConfig) -> Path | None:
        if not config.entry.looks_at("model.backbone"):
            return None
        backbone = config.model.backbone
        wanted = self.spec.weights_sha256.get(backbone)
        path = self._own_weights(config, wanted is not None and self._taking is not None)
        if path is None and wanted is not None and self._taking is not None:
            return self._taking.weights(backbone, wanted)
        if path is not None and path not in self._digests:
            self._digests[path] = file_sha256(path)
        if path is not None and wanted is not None and self._digests[path] != wanted:
            raise ClusterError(f"{path} differs from the driver's weights; copy the same file to every node")
        return path

    def _own_weights(self, config: TrialConfig, published: bool) -> Path | None:
        """None for random ones; published: None too where this node has no file, and nothing is downloaded."""
        backbone, weights = config.model.backbone, config.model.weights
        if not published:
            return resolve_weights(backbone, weights)
        if self._always:
            return None
        try:
            return local_weights(backbone) if weights == IMAGENET else resolve_weights(backbone, weights)
        except WeightsError:
            return None


def _stop_where_asked(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise StoppedError("stopped while it waited for what the driver publishes")
