"""A trained detector with a density of its own trunk beside it: `model.density_trunk=trained`, one pass for both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from sctune.config import TrialConfig
from sctune.errors import StoppedError
from sctune.methods.base import Scorer, Scores, TaskImages
from sctune.methods.clock import now
from sctune.methods.deviation.detector import Detector, over_turns
from sctune.methods.deviation.fused import BesideMethod, held_out, parted
from sctune.methods.deviation.method import DeviationMethod
from sctune.methods.deviation.scorer import PixelScore
from sctune.methods.deviation.trunk_density import Training, TrunkDensity, one_by_one
from sctune.methods.pixels import normalise, score_alike, to_pixels
from sctune.methods.untrained.extractor import Extractor
from sctune.methods.untrained.reference import Picked

BATCH = 32


class OnePass:
    """Scores of a detector and of a density of its trunk. kind: what the density is of; ends: where it looks."""

    def __init__(self, detector: Detector, density: TrunkDensity) -> None:
        self.detector = detector
        self.kind: type[Extractor] = density.kind
        self.ends = tuple(density.ends)
        self.turns = density.config.score.turns

    def __call__(
        self, images: Tensor, references: list[Tensor] | None, model: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Both scores [N], in their own units, of normalised images [N, 3, S, S]; model: features -> those of it."""
        features, maps = self.detector.with_maps(self.detector.views(images), self.ends)
        beside = model(self.kind.join([self.kind.part(one) for one in maps]))
        return self.detector.score_features(features, references), over_turns(beside, self.turns)


class JoinedScore(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> scores [N]: a copy on the CPU."""

    scale: Tensor

    def __init__(self, density: TrunkDensity, scale: Tensor, weight: float) -> None:
        super().__init__()
        self.pixels = PixelScore(density.detector.scored)
        self.density = copy.deepcopy(density.fitted).cpu()
        self.weight = weight
        self._both = OnePass(self.pixels.detector, density)
        self.register_buffer("scale", scale.float())

    def forward(self, pixels: Tensor) -> Tensor:
        own, beside = self._both(normalise(pixels), self.pixels.references, self.density)
        return (own - self.scale[0]) / self.scale[1] + self.weight * beside.float()


class JoinedMethod(BesideMethod):
    """The density is fitted after every epoch to the trunk as it is then, so that each report is of what is saved.

    Neither the detector nor the density learns from the held-out tenth of the normals, which scales both.
    """

    density: TrunkDensity

    def __init__(self, config: TrialConfig, device: torch.device, detector: DeviationMethod) -> None:
        super().__init__(config, device, detector)
        self.density = TrunkDensity(config, detector)

    @classmethod
    def fresh(cls, config: TrialConfig, device: torch.device, weights: Path | None = None) -> Self:
        return cls(config, device, DeviationMethod.fresh(config, device, weights))

    @classmethod
    def trained(cls, config: TrialConfig, device: torch.device, tensors: Mapping[str, Tensor]) -> Self:
        own, held, scale = parted(tensors)
        method = cls(config, device, DeviationMethod.trained(config, device, own))
        method.density.load_model_state(held)
        method.scale = scale
        return method

    def prepare(self, images: TaskImages) -> None:
        held, rest = held_out(images.normals, self.config.seed)
        self.trained_part.prepare(TaskImages(images.array, rest, images.anomalies))
        parts = (Picked(images.array, rows) for rows in (rest, images.anomalies, held))
        self.density.prepare(Training(*parts))
        self._keep(images, held)

    def run_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        def ask() -> None:
            if should_stop():
                raise StoppedError(f"stopped in epoch {epoch + 1}")

        metrics = dict(self.trained_part.run_epoch(epoch, should_stop))
        metrics |= {f"density_{name}": value for name, value in self.density.fit(ask).items()}
        self._scale_over_turns()
        return metrics | self._rescale()

    def score(self, images: np.ndarray) -> Scores:
        return score_alike(self._together, images, self.device)

    def scorer(self) -> Scorer:
        return lambda images: self._together(images, BATCH)

    def module(self) -> nn.Module:
        return JoinedScore(self.density, self.scale.clone(), self.weight(self.config)).requires_grad_(False).eval()

    def time_step(self) -> tuple[float, int]:
        seconds, steps = self.trained_part.time_step()
        epochs, spent = self.config.epochs, []
        # the first fit asks the frozen blocks, the others do not
        for _ in range(min(2, epochs)):
            started = now(self.device)
            self.density.fit(lambda: None)
            spent.append(now(self.device) - started)
        return seconds + (spent[0] + (epochs - 1) * spent[-1]) / (steps * epochs), steps

    def _together(self, images: np.ndarray, batch_size: int) -> Scores:
        detector, parts = self.trained_part.scored, [np.zeros(0)]
        both, model = OnePass(detector, self.density), partial(one_by_one, self.density.fitted)
        with detector.scoring():
            references = detector.turned_references()
            for start in range(0, len(images), batch_size):
                pixels = to_pixels(images[start : start + batch_size], self.device, self.config.runtime.channels_last)
                own, beside = (one.double().cpu().numpy() for one in both(normalise(pixels), references, model))
                parts.append(self._scaled(own) + self.weight(self.config) * beside)
        return np.concatenate(parts)
