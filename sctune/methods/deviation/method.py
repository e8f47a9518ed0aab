"""SaliencyCut, DRA, DevNet and what lies between, as a method: a detector and how it is trained (METHODS 1.1)."""

from __future__ import annotations

import re
import time
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
from sctune.methods.deviation.detector import Detector, build_detector, detector_of
from sctune.methods.deviation.examples import pseudo_examples
from sctune.methods.deviation.heatmap import cell_maps, gradient_maps
from sctune.methods.deviation.rescore import score_variants, variant_scores
from sctune.methods.deviation.scorer import PixelScore, RepeatedScorer
from sctune.methods.deviation.step import TrainingStep
from sctune.methods.pixels import memory_format, normalise, to_pixels


@dataclass(frozen=True)
class Training:
    """What training needs beside the detector."""

    optimiser: torch.optim.Optimizer
    step: TrainingStep


class DeviationMethod(Method):
    """Heads over a trained backbone.

    All randomness follows from (seed, purpose, step), so the state is weights, optimiser moments and the epoch.
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
        self._training = Training(optimiser, step)
        self._set_references(0)

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
        first = epoch * self.config.budget.iterations
        self.detector.train()
        self.step.start_epoch(first)
        rows = []
        for number in range(first, first + self.config.budget.iterations):
            if should_stop():
                raise StoppedError(f"stopped in epoch {epoch + 1}")
            rows.append(self.step.run(number))
        metrics = _means(rows, epoch)
        metrics["lr"] = self.optimiser.param_groups[0]["lr"]
        self._set_references(epoch + 1)
        return metrics

    def score(self, images: np.ndarray) -> Scores:
        return self.detector.score_alike(images)

    def scorer(self) -> Scorer:
        return self._scorer

    def model_state(self) -> dict[str, Tensor]:
        return dict(self.detector.state_dict())

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        own = self.detector.state_dict()
        if any(own[name].dtype != value.dtype for name, value in tensors.items() if name in own):
            raise CheckpointError("the checkpoint does not fit the model: its numbers are of other types")
        try:
            self.detector.load_state_dict(tensors)
        except RuntimeError as problem:
            raise CheckpointError(
                f"the checkpoint does not fit the model: {str(problem).splitlines()[-1].strip()}"
            ) from None
        self._scorer = RepeatedScorer(self.detector)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optim/{index}/{name}": torch.as_tensor(value) for name, value in moments.items()}
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        moments = self._moments(tensors)
        self.load_model_state(model_tensors(tensors))
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})

    def module(self) -> nn.Module:
        return PixelScore(self.detector).eval()

    def time_step(self) -> tuple[float, int]:
        self.detector.train()
        self.step.start_epoch(0)
        self.step.run(0)
        started = time.perf_counter()
        self.step.run(1)
        return time.perf_counter() - started, self.config.budget.iterations

    def cells(self, images: np.ndarray) -> Maps | None:
        with self._scoring():
            return _as_maps(cell_maps(self.detector, self._normalised(images)))

    def gradients(self, images: np.ndarray) -> Maps | None:
        with self._scoring():
            return _as_maps(gradient_maps(self.detector, self._normalised(images)))

    def embed(self, images: np.ndarray) -> NDArray[np.float32] | None:
        return self.detector.embed(images)

    def saliency(self, images: np.ndarray) -> Maps | None:
        augment = self.config.augment
        grid = min(augment.grid_size, images.shape[1] // 2)
        gradient, _ = self.step.saliency_gradient(self._normalised(images), 0)
        return _as_maps(smooth_saliency(gradient, grid, augment.kernel)[:, 0])

    def examples(self, normals: np.ndarray, count: int) -> list[PseudoExample]:
        return pseudo_examples(self.step, normals, count)

    @staticmethod
    def variants(config: TrialConfig) -> list[Variant]:
        return score_variants(config)

    def variant_scores(self, images: np.ndarray, variants: Sequence[Variant]) -> list[Scores]:
        return variant_scores(self.detector, images, variants)

    def _normalised(self, images: np.ndarray) -> Tensor:
        return normalise(to_pixels(images, self.device, self.config.runtime.channels_last))

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        was_training = self.detector.training
        self.detector.eval()
        try:
            yield
        finally:
            self.detector.train(was_training)

    def _set_references(self, epoch: int) -> None:
        references = self.step.references
        if references is not None:
            self.detector.set_references(references.for_scoring(epoch))

    def _moments(self, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """Adam's state by the index of its parameter; CheckpointError where it is of other parameters."""
        trained = self.optimiser.param_groups[0]["params"]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            match = re.fullmatch(r"optim/([0-9]{1,6})/(step|exp_avg|exp_avg_sq)", name)
            if match is None and name.startswith(MODEL):
                continue
            weight = trained[int(match[1])] if match and int(match[1]) < len(trained) else None
            if match is None or weight is None or value.shape != (() if match[2] == "step" else weight.shape):
                raise CheckpointError(f"the checkpoint does not fit the optimiser: {name!r}")
            moments.setdefault(int(match[1]), {})[match[2]] = value
        if any(len(state) != 3 for state in moments.values()):
            raise CheckpointError("the checkpoint does not fit the optimiser: a part of its state is missing")
        return moments


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
