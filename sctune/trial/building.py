"""Trainers on this node, from what all trials of a launch share; what must be as on the driver is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from sctune.backbones.weights import resolve_weights
from sctune.config import Task, TrialConfig
from sctune.data.digests import data_digest
from sctune.data.pools import Files
from sctune.data.split import Split, split_for
from sctune.errors import ChangedDataError, ClusterError, ConfigError, DataError, PlaceError
from sctune.files import file_sha256
from sctune.metrics.objective import DEFAULT, Objective, find_objective
from sctune.train.trainer import Trainer

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
    replicates: int = 1
    epochs: int = 0


def package_versions() -> dict[str, str]:
    return {name: version(name).split("+")[0] for name in CHECKED_PACKAGES}


class TrainerBuilder:
    """Makes trainers in a worker. Digests of weights files are kept, since they are asked for with every trial.

    Raises ClusterError and ChangedDataError where this node has something else than the driver, PlaceError where it
    lacks files, and what Trainer raises.
    """

    def __init__(self, spec: TrialSpec) -> None:
        self.spec = spec
        self._digests: dict[Path, str] = {}

    def build(self, config: TrialConfig, tasks: Sequence[Task], should_stop: Callable[[], bool]) -> list[Trainer]:
        """One trainer a task, in their order; should_stop: asked before every iteration."""
        self._check_versions()
        objective = self._objective()
        weights = self._weights(config)
        trainers = []
        seen: dict[tuple[Path, Files], str] = {}
        for task in tasks:
            split = self._split(config, task)
            self._check_content(task, split, seen)
            trainers.append(
                Trainer(
                    config,
                    task,
                    cache=Path(self.spec.cache),
                    weights=weights,
                    split=split,
                    should_stop=should_stop,
                    objective=objective,
                )
            )
        return trainers

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
