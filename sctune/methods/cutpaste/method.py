"""CutPaste as a method: the pretext task trains the trunk, a Gaussian of its features of normal images scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.backbones.weights import resolve_weights
from sctune.config import TrialConfig
from sctune.data.batches import stream
from sctune.errors import CheckpointError, DataError, NonFiniteError, StoppedError
from sctune.methods.base import Method, PseudoExample, Scorer, Scores, TaskImages, model_tensors
from sctune.methods.clock import now
from sctune.methods.cutpaste.entry import section_of
from sctune.methods.cutpaste.features import Features
from sctune.methods.cutpaste.network import Classifier, PixelScore, build_classifier, load_part
from sctune.methods.cutpaste.training import Training, means
from sctune.methods.density import Gaussian, distances, fit_gaussian
from sctune.methods.moments import STEPPED
from sctune.methods.pixels import score_alike
from sctune.methods.untrained.reference import LEAST_NORMALS, Ask, Picked

TRUNK, DENSITY = "trunk.", "density."
"""Begin the names of the trunk's tensors, and of the Gaussian's, in a model's state."""
BATCH = 16
"""Images of a pass where what stands beside an image may change its last bits; on a CPU twice as fast as one by one."""


class CutPasteMethod(Method):
    """The Gaussian is fitted anew after every epoch, to normal images as they are, so that each report is of what a
    checkpoint of that epoch scores. Before the first epoch it is of the trunk as it began.
    """

    def __init__(self, config: TrialConfig, device: torch.device, net: Classifier) -> None:
        super().__init__(config, device)
        self.net = net
        self.density: Gaussian | None = None
        self._features = Features(config, net.trunk, device)
        self._training: Training | None = None
        self._normals: Picked | None = None

    @classmethod
    def fresh(cls, config: TrialConfig, device: torch.device, weights: Path | None = None) -> Self:
        if weights is None:
            weights = resolve_weights(config.model.backbone, config.model.weights)
        return cls(config, device, build_classifier(config, weights, device))

    @classmethod
    def trained(cls, config: TrialConfig, device: torch.device, tensors: Mapping[str, Tensor]) -> Self:
        method = cls(config, device, build_classifier(config, None, device))
        method.load_model_state(tensors)
        return method

    def prepare(self, images: TaskImages) -> None:
        count, most = len(images.normals), section_of(self.config).max_normals
        if count < LEAST_NORMALS:
            raise DataError(
                f"method cutpaste needs {LEAST_NORMALS} normal training images at least, and {count} are there; add "
                "images"
            )
        order = torch.randperm(count, generator=stream(self.config.seed, "normals")).numpy()
        self._normals = Picked(images.array, images.normals[np.sort(order[:most])])
        self._training = Training(self.config, self.net, images, self.device)

    @property
    def training(self) -> Training:
        """Raises ValueError before `prepare`."""
        if self._training is None:
            raise ValueError("the method has no images to train on; call prepare first")
        return self._training

    @property
    def images_per_epoch(self) -> int:
        return self.training.length.of(0) * self.training.pretext.size

    def run_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        def ask() -> None:
            if should_stop():
                raise StoppedError(f"stopped in epoch {epoch + 1}")

        training = self.training
        self.net.train()
        rows: list[Mapping[str, Tensor]] = []
        for number in range(training.length.before(epoch), training.length.before(epoch + 1)):
            ask()
            rows.append(training.update(number))
        figures = means(rows)
        for name, value in figures.items():
            if not np.isfinite(value):
                raise NonFiniteError(f"{name} is {value} in epoch {epoch + 1}; a smaller method.sgd_lr may help")
        figures["lr"] = training.optimiser.param_groups[-1]["lr"]
        return figures | self._fit(ask)

    def score(self, images: np.ndarray) -> Scores:
        return score_alike(partial(self._scores, self._fitted()), images, self.device)

    def scorer(self) -> Scorer:
        return lambda images: self._scores(self._fitted(), images, BATCH, keep=True)

    def model_state(self) -> dict[str, Tensor]:
        found = {f"{TRUNK}{name}": value for name, value in self.net.trunk.state_dict().items()}
        fitted = {} if self.density is None else self.density.state_dict()
        return found | {f"{DENSITY}{name}": value for name, value in fitted.items()}

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        trunk, fitted = (
            {name.removeprefix(begin): value for name, value in tensors.items() if name.startswith(begin)}
            for begin in (TRUNK, DENSITY)
        )
        if len(trunk) + len(fitted) < len(tensors):
            raise CheckpointError("the model is none of method cutpaste: it has more than a trunk and a Gaussian")
        load_part(self.net.trunk, trunk, "trunk")
        # other frozen blocks give other maps
        self._features = Features(self.config, self.net.trunk, self.device)
        self.density = None
        if fitted:
            axes = fitted.get("axes")
            rank = axes.shape[2] if axes is not None and axes.ndim == 3 else 0
            density = Gaussian(self.net.trunk.channels, rank, 1)
            load_part(density, fitted, "Gaussian")
            self.density = density.to(self.device)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        return tensors | self.training.state(), values | {STEPPED: self.training.stepped}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.training.load_state(tensors, values.get(STEPPED))
        self.load_model_state(model_tensors(tensors))

    def module(self) -> nn.Module:
        return PixelScore(self.net.trunk, self._fitted())

    def time_step(self) -> tuple[float, int]:
        self.net.train()
        self.training.update(0)
        marks = [now(self.device)]
        self.training.update(1)
        marks.append(now(self.device))
        # the first fit asks the frozen blocks, the others do not
        for _ in range(2):
            self._fit(lambda: None)
            marks.append(now(self.device))
        step, first, later = np.diff(marks)
        length = self.training.length
        return float(step + (first + (self.config.epochs - 1) * later) / length.whole), length.longest

    def embed(self, images: np.ndarray) -> NDArray[np.float32] | None:
        parts = [features.cpu().numpy() for features in self._features.walk(images, BATCH)]
        return np.concatenate([np.zeros((0, self.net.trunk.channels), np.float32), *parts])

    def views(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What training tells from them: the images with a patch, and with a scar; none of a model that only scores."""
        return {} if self._training is None or not len(images) else self._training.pretext.views(images)

    def examples(self, normals: np.ndarray, count: int) -> list[PseudoExample]:
        if not len(normals):
            raise DataError("a gallery needs a held-out normal image at least")
        order = torch.randperm(len(normals), generator=stream(self.config.data.partition_seed, "gallery")).numpy()
        return self.training.pretext.examples(normals[order[:count]])

    def _scores(self, density: Gaussian, images: np.ndarray, size: int, keep: bool = False) -> Scores:
        parts = [np.zeros(0)]
        for features in self._features.walk(images, size, keep):
            with torch.inference_mode():
                parts.append(distances(density(features)).cpu().numpy())
        return np.concatenate(parts)

    def _fitted(self) -> Gaussian:
        """Of the trunk as it began, where no epoch was run yet. Raises ValueError where there are no images either."""
        if self.density is None:
            if self._normals is None:
                raise ValueError("the method has seen no images yet; call prepare or run an epoch first")
            self._fit(lambda: None)
            assert self.density is not None
        return self.density

    def _fit(self, ask: Ask) -> dict[str, float]:
        assert self._normals is not None
        features = torch.cat(list(self._features.walk(self._normals, BATCH, keep=True, ask=ask)))
        if not bool(torch.isfinite(features).all()):
            raise NonFiniteError("the trunk gives features that are no finite numbers; try a smaller method.sgd_lr")
        try:
            density, shrinkage = fit_gaussian(features.double().cpu().numpy())
        except DataError:
            # of too few images `prepare` has said so
            raise NonFiniteError(
                f"the trunk gives all {len(self._normals)} normal images the same features, so that a Gaussian of them "
                "tells nothing: take model.weights=imagenet where they are random, a smaller method.sgd_lr where the "
                "training has failed"
            ) from None
        self.density = density.to(self.device).requires_grad_(False).eval()
        return {"normals": float(len(self._normals)), "shrinkage": shrinkage}
