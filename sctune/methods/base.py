"""What every way to find anomalies does, whether it trains a network, keeps a memory bank or fits a density.

Trainer, search, deployment and pages know this protocol only. A subclass must have the abstract methods; the rest has
defaults, which mean that there is nothing of the kind.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.config import TrialConfig
from sctune.methods.gradient import gradient_maps

Maps = NDArray[np.float32]
"""A value of each pixel [N, S, S]."""

Scores = NDArray[np.float64]

Scorer = Callable[[np.ndarray], Scores]
"""uint8 images [N, S, S, 3] -> scores [N]."""

Variant = dict[str, Any]
"""Dotted name -> value of what only changes the scores."""

MODEL = "model/"
"""Begins the names of `model_state` in a checkpoint; those of what training needs besides begin otherwise."""


@dataclass(frozen=True)
class TaskImages:
    """What a task trains on: decoded images uint8 [N, S, S, 3], mapped from disk, and rows in it by label.

    normals, anomalies: rows [n] of the training images; the rest of the array is not to be looked at.
    """

    array: np.ndarray
    normals: np.ndarray
    anomalies: np.ndarray

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The images of these rows, copied: uint8 [n, S, S, 3]."""
        return self.array[rows]


@dataclass(frozen=True)
class PseudoExample:
    """One pseudo anomaly: donor, receiver and result uint8 [S, S, 3]; mask [S, S] bool: what was replaced.

    saliency [S, S] in [0, 1], None where the maker looks at none.
    """

    donor: np.ndarray
    receiver: np.ndarray
    saliency: np.ndarray | None
    mask: np.ndarray
    result: np.ndarray


class Fitted(ABC):
    """What has learned, and scores: a method, or several of them together (`ensemble.py`).

    config: how images are prepared and what it is; device: where it computes.
    """

    def __init__(self, config: TrialConfig, device: torch.device) -> None:
        self.config = config
        self.device = device

    @abstractmethod
    def score(self, images: np.ndarray) -> Scores:
        """Anomaly scores [N] (float64, higher is more anomalous) of uint8 images [N, S, S, 3].

        The same image has the same score to the last bit, whatever it is scored with and however often.
        """

    @abstractmethod
    def model_state(self) -> dict[str, Tensor]:
        """All that scoring needs, as named tensors of any device: what a deployed model is made of."""

    @abstractmethod
    def module(self) -> nn.Module:
        """Pixels float [N, 3, S, S] in [0, 1] -> scores [N], as torch operations: what ONNX and torch.export carry.

        It is a copy on the CPU, in eval mode, without gradients of its weights; the method never changes it later. Its
        scores agree with `score` up to rounding, for any N of at least 1.
        """

    def cells(self, images: np.ndarray) -> Maps | None:
        """Where uint8 images [N, S, S, 3] are anomalous, in units that can be compared between images; None: unknown.

        A few images at a time.
        """
        return None

    def gradients(self, images: np.ndarray) -> Maps | None:
        """The smoothed gradient of the score by the pixels, to be compared within an image; None: there is none."""
        return gradient_maps(self.module().to(self.device), images, self.device)


class Method(Fitted):
    """A way to find anomalies on one task: what it has learned, and how it goes on learning.

    It is made by `fresh`, gets its images by `prepare`, and then runs epoch after epoch; or it is made by `trained`
    from what `model_state` gave, and only scores. config: of the trial.

    All that is drawn must follow from (config.seed, purpose, number), as `data.batches.stream` does it, so that a
    state needs no random numbers and a continued run equals one that was never stopped.
    """

    @classmethod
    @abstractmethod
    def fresh(cls, config: TrialConfig, device: torch.device, weights: Path | None = None) -> Self:
        """One that has learned nothing. weights: resolved file of the backbone, where the caller has it.

        Raises WeightsError where a backbone's weights cannot be had.
        """

    @classmethod
    def trained(cls, config: TrialConfig, device: torch.device, tensors: Mapping[str, Tensor]) -> Self:
        """One that scores as the one did that `tensors` are the `model_state` of; needs no other file."""
        method = cls.fresh(config, device)
        method.load_model_state(tensors)
        return method

    @abstractmethod
    def prepare(self, images: TaskImages) -> None:
        """Take the task's images; called once, before the first epoch and before `load_state`."""

    @abstractmethod
    def run_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        """Learn for one unit of budget; gives finite figures of it by name.

        epoch: 0 for the first. The unit is an epoch of the method's own; one that trains nothing has a single one, in
        which it does all. should_stop is asked often (each step); where it says so, StoppedError is raised. Raises
        NonFiniteError for a figure that is no number.
        """

    @abstractmethod
    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a `model_state`; raises CheckpointError where it does not fit, and is of no use afterwards."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a later process needs to go on bit by bit: named tensors, and JSON values about them."""
        return {f"{MODEL}{name}": value for name, value in self.model_state().items()}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over a `state` of the same configuration; raises CheckpointError where it does not fit."""
        self.load_model_state(model_tensors(tensors))

    def scorer(self) -> Scorer:
        """Scores arrays that are scored after every epoch, and never change: it may keep what stays the same.

        Its scores may differ from those of `score` by rounding.
        """
        return self.score

    @property
    def images_per_epoch(self) -> int:
        """Images that an epoch learns from, each time counted: only for the number of images a second."""
        return self.config.budget.iterations * self.config.budget.batch_size

    def time_step(self) -> tuple[float, int]:
        """Seconds of a step, and steps of an epoch, by trying; what was learned is of no use afterwards."""
        started = time.perf_counter()
        self.run_epoch(0, lambda: False)
        return time.perf_counter() - started, 1

    def embed(self, images: np.ndarray) -> NDArray[np.float32] | None:
        """Features [N, C] of uint8 images [N, S, S, 3], for pictures of them; None where there are no such."""
        return None

    def saliency(self, images: np.ndarray) -> Maps | None:
        """Saliency in [0, 1] that training cuts by, of uint8 images [N, S, S, 3]; None where it looks at none."""
        return None

    def views(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What the method makes of uint8 images [N, S, S, 3] on the way to their scores, by its name for people.

        Pictures uint8 [N, s, s, 3], or maps [N, s, s] of floats in [0, 1]. Empty where there is nothing to look at.
        """
        return {}

    def examples(self, normals: np.ndarray, count: int) -> list[PseudoExample]:
        """At most `count` pseudo anomalies as training makes them now, from normal images uint8 [N, S, S, 3].

        Empty where it makes none. Raises DataError for too few images.
        """
        return []

    @staticmethod
    def variants(config: TrialConfig) -> list[Variant]:
        """Ways to score with the same trained state that mean something; the first is the configuration's own."""
        return [{}]

    def variant_scores(self, images: np.ndarray, variants: Sequence[Variant]) -> list[Scores]:
        """Scores [N] of uint8 images [N, S, S, 3] for each of `variants`; the method is left as it was."""
        return [self.score(images) for _ in variants]


def model_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `model_state` in the tensors of a `state`."""
    return {name.removeprefix(MODEL): value for name, value in tensors.items() if name.startswith(MODEL)}
