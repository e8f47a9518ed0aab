"""SaliencyCut, DRA, DevNet and what lies between, as a method: a detector and how it is trained (METHODS 1.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.augment.saliency import smooth_saliency
from sctune.config import TrialConfig
from sctune.errors import CheckpointError, NonFiniteError, StoppedError
from sctune.methods.base import MODEL, Maps, Method, PseudoExample, Scorer, Scores, TaskImages, Variant, model_tensors
from sctune.methods.clock import now
from sctune.methods.deviation.average import WeightAverage
from sctune.methods.deviation.detector import Detector, build_detector, detector_of
from sctune.methods.deviation.examples import pseudo_examples
from sctune.methods.deviation.heatmap import cell_maps, gradient_maps
from sctune.methods.deviation.rescore import score_variants, variant_scores
from sctune.methods.deviation.scorer import PixelScore, RepeatedScorer
from sctune.methods.deviation.statistics import refit_statistics
from sctune.methods.deviation.step import TrainingStep
from sctune.methods.moments import load_moments, moment_tensors
from sctune.methods.pixels import memory_format, normalise, to_pixels

RAW = "raw/"
"""Begins the names of the weights that train, where averaged ones are the model's."""
AVERAGED = "averaged"
"""Name of the number of steps in the average among the values of a state."""


@dataclass(frozen=True)
class Training:
    """What training needs beside the detector; average: of its weights, where one is asked for."""

    optimiser: torch.optim.Optimizer
    step: TrainingStep
    average: WeightAverage | None


class DeviationMethod(Method):
    """Heads over a trained backbone.

    All randomness follows from (seed, purpose, step), so the state is weights (with an average of them: both, and the
    number of steps in it), optimiser moments and the epoch. detector: the one that trains; scored: the one that scores.
    """

    def __init__(self, config: TrialConfig, device: torch.device, detector: Detector) -> None:
        super().__init__(config, device)
        self.detector = detector
        self._scorer = RepeatedScorer(detector)
        self._training: Training | None = None

    @classmethod
    def fresh(cls, config: TrialConfig, device: torch.device, weights: Path | None = None) -> Self:
        detector = build_detector(config, weights)
        return cls(config, device, detector.to(device).to(memory_format=memory_format(config.runtime)))

    @classmethod
    def trained(cls, config: TrialConfig, device: torch.device, tensors: Mapping[str, Tensor]) -> Self:
        return cls(config, device, detector_of(config, tensors).to(device))

    def prepare(self, images: TaskImages) -> None:
        config = self.config
        weights = [weight for weight in self.detector.parameters() if weight.requires_grad]
        optimiser = torch.optim.Adam(weights, lr=config.optim.lr, weight_decay=config.optim.weight_decay)
        step = TrainingStep(config, self.detector, optimiser, images, self.device)
        average = None if config.optim.average == "none" else WeightAverage(config, self.detector)
        self._training = Training(optimiser, step, average)
        self._scorer = RepeatedScorer(self.scored)
        self._set_references(0)

    @property
    def scored(self) -> Detector:
        """The detector that scores: the trained one, or the one with its averaged weights."""
        average = None if self._training is None else self._training.average
        return self.detector if average is None else average.detector

    @property
    def step(self) -> TrainingStep:
        """Runs single steps, and makes single batches; raises ValueError before `prepare`."""
        return self._prepared.step

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        """Raises ValueError before `prepare`."""
        return self._prepared.optimiser

    @property
    def _prepared(self) -> Training:
        if self._training is None:
            raise ValueError("the method has no images to train on; call prepare first")
        return self._training

    def run_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        rate = self.config.learning_rate(epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        count = self.config.budget.iterations
        first = epoch * count
        self.detector.train()
        self.step.start_epoch(first)
        rows = []
        for number in range(first, first + count):
            if should_stop():
                raise StoppedError(f"stopped in epoch {epoch + 1}")
            rows.append(self._run_step(number))
        metrics = _means(rows, epoch)
        metrics["lr"] = self.optimiser.param_groups[0]["lr"]
        self._set_references(epoch + 1)
        if self._refits and epoch + 1 == self.config.budget.epochs:
            refit_statistics(self.scored, self.step, first + count, count, should_stop)
        return metrics

    @property
    def _refits(self) -> bool:
        return self.config.optim.final_statistics != "running"

    def _run_step(self, number: int) -> dict[str, Tensor]:
        figures = self.step.run(number)
        if self._prepared.average is not None:
            self._prepared.average.update(self.detector, number)
        return figures

    def score(self, images: np.ndarray) -> Scores:
        return self.scored.score_alike(images)

    def scorer(self) -> Scorer:
        return self._scorer

    def model_state(self) -> dict[str, Tensor]:
        return dict(self.scored.state_dict())

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        _load(self.scored, tensors)
        self._scorer = RepeatedScorer(self.scored)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        average = self._prepared.average
        if average is not None:
            tensors |= {f"{RAW}{name}": value for name, value in self.detector.state_dict().items()}
            values[AVERAGED] = average.count
        return tensors | moment_tensors(self.optimiser), values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        average, count = self._prepared.average, values.get(AVERAGED)
        if average is not None and (type(count) is not int or count < 0):
            raise CheckpointError(f"the checkpoint does not fit the model: {AVERAGED} is {count!r}, no number of steps")
        load_moments(self.optimiser, tensors, (MODEL,) if average is None else (MODEL, RAW))
        self.load_model_state(model_tensors(tensors))
        if average is not None:
            raw = {name.removeprefix(RAW): value for name, value in tensors.items() if name.startswith(RAW)}
            _load(self.detector, raw)
            average.count = values[AVERAGED]

    def module(self) -> nn.Module:
        return PixelScore(self.scored).eval()

    def time_step(self) -> tuple[float, int]:
        self.detector.train()
        self.step.start_epoch(0)
        self._run_step(0)
        budget, started = self.config.budget, now(self.device)
        self._run_step(1)
        seconds = now(self.device) - started
        if self._refits:
            # once in a training, a batch for each step of an epoch
            refit_statistics(self.scored, self.step, 2, 1, lambda: False)
            seconds += (now(self.device) - started - seconds) / budget.epochs
        return seconds, budget.iterations

    def cells(self, images: np.ndarray) -> Maps | None:
        with self._scoring():
            return _as_maps(cell_maps(self.scored, self._normalised(images)))

    def gradients(self, images: np.ndarray) -> Maps | None:
        with self._scoring():
            return _as_maps(gradient_maps(self.scored, self._normalised(images)))

    def embed(self, images: np.ndarray) -> NDArray[np.float32] | None:
        return self.scored.embed(images)

    def saliency(self, images: np.ndarray) -> Maps | None:
        augment = self.config.augment
        if augment.kind != "saliencycut":
            return None
        grid = min(augment.grid_size, images.shape[1] // 2)
        gradient, _ = self.step.saliency_gradient(self._normalised(images), 0)
        return _as_maps(smooth_saliency(gradient, grid, augment.kernel)[:, 0])

    def examples(self, normals: np.ndarray, count: int) -> list[PseudoExample]:
        return pseudo_examples(self.step, normals, count)

    @staticmethod
    def variants(config: TrialConfig) -> list[Variant]:
        return score_variants(config)

    def variant_scores(self, images: np.ndarray, variants: Sequence[Variant]) -> list[Scores]:
        return variant_scores(self.scored, images, variants)

    def _normalised(self, images: np.ndarray) -> Tensor:
        return normalise(to_pixels(images, self.device, self.config.runtime.channels_last))

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        was_training = self.scored.training
        self.scored.eval()
        try:
            yield
        finally:
            self.scored.train(was_training)

    def _set_references(self, epoch: int) -> None:
        references = self.step.references
        if references is not None:
            images = references.for_scoring(epoch)
            for detector in (self.detector, self.scored):
                detector.set_references(images)


def _load(detector: Detector, tensors: Mapping[str, Tensor]) -> None:
    """Take over a detector's state; raises CheckpointError where it does not fit."""
    own = detector.state_dict()
    if any(own[name].dtype != value.dtype for name, value in tensors.items() if name in own):
        raise CheckpointError("the checkpoint does not fit the model: its numbers are of other types")
    try:
        detector.load_state_dict(tensors)
    except RuntimeError as problem:
        raise CheckpointError(
            f"the checkpoint does not fit the model: {str(problem).splitlines()[-1].strip()}"
        ) from None


def _means(rows: Sequence[Mapping[str, Tensor]], epoch: int) -> dict[str, float]:
    """Mean of each figure over the steps that have it: one without pseudo slots has no figures about them."""
    metrics = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        metrics[name] = float(torch.stack([row[name] for row in rows if name in row]).double().mean())
        if not np.isfinite(metrics[name]):
            raise NonFiniteError(f"{name} is {metrics[name]} in epoch {epoch + 1}; a smaller optim.lr may help")
    return metrics


def _as_maps(maps: Tensor) -> Maps:
    found: Maps = maps.float().cpu().numpy()
    return found
