"""A trained detector with a density of the normal images beside it: `model.normal_head=gaussian` or `mixture`.

The density is what method `gaussian` fits to a frozen copy of the backbone (`joined.py`: to the trained one). Ten
anomalies say what some defects look like, hundreds of normal images what normal is: a network that is trained on few
images says the first well, and the density the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.config import TrialConfig
from sctune.data.batches import stream
from sctune.errors import CheckpointError, DataError
from sctune.methods.base import MODEL, Maps, Method, PseudoExample, Scorer, Scores, TaskImages, Variant, model_tensors
from sctune.methods.clock import now
from sctune.methods.deviation.density import WEIGHT, auto_weight, cell_share, density_config, density_variants
from sctune.methods.deviation.method import DeviationMethod
from sctune.methods.registry import method_class
from sctune.methods.untrained.cells import CellScore
from sctune.methods.untrained.combination import Combination
from sctune.methods.untrained.reference import Reference

HELD_SHARE, LEAST_HELD, MOST_HELD = 0.1, 4, 64
"""Of the training normals, those that set the scale of the detector's scores and are not trained on."""
LEAST_SPREAD = 0.05
"""Of held-out scores, in standard deviations of the loss's prior: heads that say less are not blown up, nor is their
rounding."""
LEAST_OF_TURNS = 0.1
"""Of held-out scores of the density over four turns, in deviations of one: turns that are independent leave a half."""
DENSITY, SCALE = "density.", "fused.scale"
"""Begin the names of the density's tensors; name of mean and standard deviation of held-out detector scores and the
density's weight of `score.density=auto` [3]."""
EARLIER_WEIGHT = 1.0
"""Of a state without one, when it was the default."""


class Density(Protocol):
    """What stands beside the detector: a reference, or one on the trained trunk."""

    def by_share(self, images: np.ndarray, shares: Sequence[float]) -> Scores: ...

    def cells(self, images: np.ndarray) -> Maps | None: ...

    @property
    def fitted(self) -> nn.Module: ...

    def model_state(self) -> dict[str, Tensor]: ...

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None: ...


class FusedScore(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> scores [N]: that of the detector, scaled, and the weighed density.

    turns: of the image in quarters, over which the density is averaged; the detector knows its own.
    """

    scale: Tensor

    def __init__(self, detector: nn.Module, density: nn.Module, scale: Tensor, weight: float, turns: int) -> None:
        super().__init__()
        self.detector = detector
        self.density = density
        self.weight, self.turns = weight, turns
        self.register_buffer("scale", scale.float())

    def forward(self, pixels: Tensor) -> Tensor:
        own = (self.detector(pixels) - self.scale[0]) / self.scale[1]
        turned = [self.density(pixels.rot90(turn, (2, 3)) if turn else pixels) for turn in range(self.turns)]
        return own + self.weight * torch.stack(turned).mean(dim=0)


class BesideMethod(Method):
    """Score: that of the detector in standard deviations of held-out normals, plus `score.density` times the density.

    Both parts have mean 0 and deviation 1 on normal images that neither has learned from: a tenth of the training
    normals is kept from the detector for it. trained_part: the detector; scale [3]: mean and deviation of its held-out
    scores, and the weight that `score.density=auto` has.
    """

    density: Density
    scale: Tensor

    def __init__(self, config: TrialConfig, device: torch.device, detector: DeviationMethod) -> None:
        super().__init__(config, device)
        self.trained_part = detector
        self._set_scale(0.0, 1.0, EARLIER_WEIGHT)
        self._held = np.zeros((0, 0, 0, 3), np.uint8)

    def _scale_over_turns(self) -> None:
        """A mean over turns spreads less than the one image that the density was scaled by."""
        turns = self.config.score.turns
        if turns == 1:
            return
        scores = self._beside(self._held, turns, [cell_share(self.config)])[0]
        combination = self.density.fitted.get_submodule("combination")
        assert isinstance(combination, Combination)
        combination.rescale(float(scores.mean()), max(float(scores.std(ddof=1)), LEAST_OF_TURNS))

    def _keep(self, images: TaskImages, held: np.ndarray) -> None:
        """What the scales are taken from; held: rows of the held-out normals."""
        self._held = images.take(held)
        self._set_scale(0.0, 1.0, auto_weight(self.config, len(images.anomalies)))

    def weight(self, config: TrialConfig) -> float:
        """Of the density, beside 1 for the detector."""
        chosen = config.score.density
        return float(self.scale[2]) if chosen == "auto" else chosen

    def _rescale(self) -> dict[str, float]:
        scores = self.trained_part.scorer()(self._held)
        self._set_scale(float(scores.mean()), max(float(scores.std(ddof=1)), LEAST_SPREAD), float(self.scale[2]))
        return {"held_out_score_sd": float(self.scale[1]), "density_weight": self.weight(self.config)}

    def _set_scale(self, mean: float, deviation: float, weight: float) -> None:
        self.scale = torch.tensor([mean, deviation, weight], dtype=torch.float64)

    def model_state(self) -> dict[str, Tensor]:
        density = {f"{DENSITY}{name}": value for name, value in self.density.model_state().items()}
        return self.trained_part.model_state() | density | {SCALE: self.scale}

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        own, held, scale = parted(tensors)
        self.trained_part.load_model_state(own)
        self.density.load_model_state(held)
        self.scale = scale

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = self.trained_part.state()
        return tensors | super().state()[0], values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        own, held, scale = parted(model_tensors(tensors))
        rest = {name: value for name, value in tensors.items() if not name.startswith(MODEL)}
        self.trained_part.load_state(rest | {f"{MODEL}{name}": value for name, value in own.items()}, values)
        self.density.load_model_state(held)
        self.scale = scale

    @property
    def images_per_epoch(self) -> int:
        return self.trained_part.images_per_epoch

    def cells(self, images: np.ndarray) -> Maps | None:
        own = self.trained_part.cells(images)
        if own is None:
            return None
        # turned there and back
        turned = [
            np.rot90(_cells(self.density, np.rot90(images, turn, (1, 2))), -turn, (1, 2))
            for turn in range(self.config.score.turns)
        ]
        beside = self.weight(self.config) * np.mean(turned, axis=0)
        found: Maps = (own / float(self.scale[1]) + beside).astype(np.float32)
        return found

    def embed(self, images: np.ndarray) -> NDArray[np.float32] | None:
        return self.trained_part.embed(images)

    def saliency(self, images: np.ndarray) -> Maps | None:
        return self.trained_part.saliency(images)

    def examples(self, normals: np.ndarray, count: int) -> list[PseudoExample]:
        return self.trained_part.examples(normals, count)

    @staticmethod
    def variants(config: TrialConfig) -> list[Variant]:
        return density_variants(config, DeviationMethod.variants(config))

    def variant_scores(self, images: np.ndarray, variants: Sequence[Variant]) -> list[Scores]:
        """The scales stay those of the state: a model that is loaded with a variant's values has no other."""
        own = [{name: value for name, value in variant.items() if name != WEIGHT} for variant in variants]
        several = [variant for number, variant in enumerate(own) if variant not in own[:number]]
        scores = self.trained_part.variant_scores(images, several)
        chosen = [self.config.override(variant) for variant in variants]
        shares = list(dict.fromkeys(cell_share(one) for one in chosen))
        beside = {turns: self._beside(images, turns, shares) for turns in {one.score.turns for one in chosen}}
        return [
            self._scaled(scores[several.index(part)])
            + self.weight(one) * beside[one.score.turns][shares.index(cell_share(one))]
            for one, part in zip(chosen, own, strict=True)
        ]

    def _scaled(self, scores: np.ndarray) -> Scores:
        found: Scores = (scores - float(self.scale[0])) / float(self.scale[1])
        return found

    def _beside(self, images: np.ndarray, turns: int, shares: Sequence[float]) -> Scores:
        """Mean score [K, N] of the density over the quarter turns of uint8 images [N, S, S, 3], by shares of cells."""
        parts = [self.density.by_share(np.rot90(images, turn, (1, 2)), shares) for turn in range(turns)]
        found: Scores = np.mean(parts, axis=0)
        return found


class FusedMethod(BesideMethod):
    """With a frozen copy of the backbone for the density, which takes all normals and scales itself by cross-fits.

    With `score.turns=4` it lacks the held-out normals, whose scores over the turns scale it.
    """

    density: Reference

    def __init__(
        self, config: TrialConfig, device: torch.device, detector: DeviationMethod, density: Reference
    ) -> None:
        super().__init__(config, device, detector)
        self.density = density

    @classmethod
    def fresh(cls, config: TrialConfig, device: torch.device, weights: Path | None = None) -> Self:
        beside = density_config(config)
        density = _reference(beside).fresh(beside, device, weights)
        return cls(config, device, DeviationMethod.fresh(config, device, weights), density)

    @classmethod
    def trained(cls, config: TrialConfig, device: torch.device, tensors: Mapping[str, Tensor]) -> Self:
        own, held, scale = parted(tensors)
        beside = density_config(config)
        detector = DeviationMethod.trained(config, device, own)
        method = cls(config, device, detector, _reference(beside).trained(beside, device, held))
        method.scale = scale
        return method

    def prepare(self, images: TaskImages) -> None:
        held, rest = held_out(images.normals, self.config.seed)
        trained = TaskImages(images.array, rest, images.anomalies)
        # cross-fits never score an image by a fit that has it, so that the density takes all
        self.density.prepare(images if self.config.score.turns == 1 else trained)
        self.trained_part.prepare(trained)
        self._keep(images, held)

    def run_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        metrics = dict(self.trained_part.run_epoch(epoch, should_stop))
        if self.density.model is None:
            found = self.density.run_epoch(0, should_stop)
            self._scale_over_turns()
            metrics |= {f"density_{name}": value for name, value in found.items()}
        return metrics | self._rescale()

    def score(self, images: np.ndarray) -> Scores:
        return self._fused(self.trained_part.score(images), images)

    def scorer(self) -> Scorer:
        quick = self.trained_part.scorer()
        return lambda images: self._fused(quick(images), images)

    def module(self) -> nn.Module:
        parts = self.trained_part.module(), self.density.module()
        found = FusedScore(*parts, self.scale.clone(), self.weight(self.config), self.config.score.turns)
        return found.requires_grad_(False).eval()

    def time_step(self) -> tuple[float, int]:
        seconds, steps = self.trained_part.time_step()
        started = now(self.device)
        self.density.run_epoch(0, lambda: False)
        # once in a training
        return seconds + (now(self.device) - started) / (steps * self.config.epochs), steps

    def _fused(self, scores: np.ndarray, images: np.ndarray) -> Scores:
        beside = self._beside(images, self.config.score.turns, [cell_share(self.config)])[0]
        return self._scaled(scores) + self.weight(self.config) * beside


def _reference(config: TrialConfig) -> type[Reference]:
    found = method_class(config)
    assert issubclass(found, Reference)
    return found


def _cells(density: Density, images: np.ndarray) -> Maps:
    """In standard deviations, as the maps of the heads are: distances of cells as the image's own is scaled."""
    maps, model = density.cells(images), density.fitted
    assert maps is not None
    if isinstance(model, CellScore):
        mean, deviation = model.combination.distance_scale
        maps = ((maps - mean) / deviation).astype(np.float32)
    return maps


def held_out(normals: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of training normals [n] that set the scale, by the seed, and the rest that is trained on.

    Raises DataError where too few would be left.
    """
    count = min(MOST_HELD, max(LEAST_HELD, int(HELD_SHARE * len(normals))))
    if len(normals) < 2 * LEAST_HELD:
        raise DataError(
            f"model.normal_head keeps {LEAST_HELD} of the normal training images to scale by, and {len(normals)} are "
            "there; add images, or use model.normal_head=mlp"
        )
    order = torch.randperm(len(normals), generator=stream(seed, "held-out normals")).numpy()
    return normals[np.sort(order[:count])], normals[np.sort(order[count:])]


def parted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Detector, density and scale from a model state; raises CheckpointError where a part is missing."""
    scale = tensors.get(SCALE)
    if (
        scale is None
        or scale.shape not in ((2,), (3,))
        or not bool(torch.isfinite(scale).all())
        or float(scale[1]) <= 0
    ):
        raise CheckpointError("the model has no density beside its detector; it is of another model.normal_head")
    held = {name.removeprefix(DENSITY): value for name, value in tensors.items() if name.startswith(DENSITY)}
    own = {name: value for name, value in tensors.items() if not name.startswith(DENSITY) and name != SCALE}
    known = [*scale.tolist(), EARLIER_WEIGHT][:3]
    return own, held, torch.tensor(known, dtype=torch.float64)
