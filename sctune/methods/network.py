"""A method that is one network, trained by Adam in steps: its epochs, checkpoints, scores and exports."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.backbones.trunk import Backbone
from sctune.backbones.weights import resolve_weights
from sctune.config import RuntimeConfig, TrialConfig
from sctune.data.batches import stream
from sctune.errors import CheckpointError, DataError, NonFiniteError, StoppedError
from sctune.methods.base import MODEL, Method, Scorer, Scores, TaskImages, model_tensors
from sctune.methods.clock import now
from sctune.methods.kept import KeptMaps
from sctune.methods.moments import STEPPED, load_moments, moment_tensors
from sctune.methods.pixels import autocast, memory_format, normalise, score_alike, to_pixels

LEAST_NORMALS = 2
"""A standard deviation needs two."""
AT_ONCE = 16
"""Images of one pass between two questions whether to stop."""

Ask = Callable[[], None]
"""Raises StoppedError where the training is to end."""
Look = Callable[[Tensor, Tensor | None], Tensor]
"""Of pixels [N, 3, S, S] in [0, 1], and what `NetworkMethod.frozen` makes of them where that is known."""


@dataclass(frozen=True)
class Part:
    """What a step learns from: a loss, the module that it trains, and scalar figures of the step by name."""

    loss: Tensor
    module: nn.Module
    figures: Mapping[str, Tensor]


@dataclass(frozen=True)
class Training:
    images: TaskImages
    optimiser: torch.optim.Optimizer


class NetworkMethod(Method):
    """network: pixels [N, 3, S, S] in [0, 1] -> scores [N]; in eval mode but in the steps of an epoch.

    All that is drawn follows from the seed and the step, so a state is weights and Adam's moments. What only scoring
    needs, as the scale of scores, is fitted after every epoch (`settle`) and is a part of the network.
    """

    def __init__(self, config: TrialConfig, device: torch.device, network: nn.Module) -> None:
        super().__init__(config, device)
        self.network = network.to(device).to(memory_format=memory_format(config.runtime)).eval()
        self._training: Training | None = None
        self._kept = KeptMaps(device=self.device)

    @classmethod
    @abstractmethod
    def build(cls, config: TrialConfig, weights: Path | None) -> nn.Module:
        """A network that has learned nothing; weights: of the backbone, none for random ones of torch's generator."""

    @abstractmethod
    def losses(self, number: int) -> Iterator[Part]:
        """The parts of step `number`, each asked for when the one before has its gradients."""

    def settle(self, ask: Ask) -> dict[str, float]:
        """Fit what scoring needs to the network as it is after an epoch; gives figures of it."""
        return {}

    def frozen(self, pixels: Tensor) -> Tensor | None:
        """What frozen blocks make of pixels, which `scores_of` can go on from; None: there are no such."""
        return None

    def scores_of(self, pixels: Tensor, frozen: Tensor | None) -> Tensor:
        """Scores [N] of pixels; frozen: as `frozen` gives it, where that is known."""
        scores: Tensor = self.network(pixels)
        return scores

    @classmethod
    def fresh(cls, config: TrialConfig, device: torch.device, weights: Path | None = None) -> Self:
        if weights is None:
            weights = resolve_weights(config.model.backbone, config.model.weights)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(config, device, cls.build(config, weights))

    @classmethod
    def trained(cls, config: TrialConfig, device: torch.device, tensors: Mapping[str, Tensor]) -> Self:
        method = cls(config, device, cls.build(config, None))
        method.load_model_state(tensors)
        return method

    def prepare(self, images: TaskImages) -> None:
        if len(images.normals) < LEAST_NORMALS:
            raise DataError(
                f"method {self.config.method.name} needs {LEAST_NORMALS} normal training images at least, and "
                f"{len(images.normals)} are there; add images"
            )
        optim = self.config.optim
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        self._training = Training(images, torch.optim.Adam(weights, lr=optim.lr, weight_decay=optim.weight_decay))

    @property
    def images(self) -> TaskImages:
        """Raises ValueError before `prepare`."""
        return self._prepared.images

    @property
    def _prepared(self) -> Training:
        if self._training is None:
            raise ValueError("the method has no images to train on; call prepare first")
        return self._training

    def run_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        def ask() -> None:
            if should_stop():
                raise StoppedError(f"stopped in epoch {epoch + 1}")

        rate = self.config.learning_rate(epoch)
        for group in self._prepared.optimiser.param_groups:
            group["lr"] = rate
        rows = []
        for number in self.steps(epoch):
            ask()
            rows.append(self.step(number))
        figures = {**_means(rows), "lr": rate, **self.settle(ask)}
        for name, value in figures.items():
            if not np.isfinite(value):
                raise NonFiniteError(f"{name} is {value} in epoch {epoch + 1}; a smaller learning rate may help")
        return figures

    def steps(self, epoch: int) -> range:
        """Numbers of the updates of an epoch."""
        count = self.config.budget.iterations
        return range(epoch * count, (epoch + 1) * count)

    def step(self, number: int) -> dict[str, Tensor]:
        """One update; scalar tensors by name."""
        optimiser = self._prepared.optimiser
        optimiser.zero_grad(set_to_none=True)
        figures: dict[str, Tensor] = {}
        losses, norms = [], []
        self.network.train()
        try:
            for part in self.losses(number):
                part.loss.backward()
                norms.append(nn.utils.clip_grad_norm_(part.module.parameters(), self.config.optim.clip_norm).detach())
                losses.append(part.loss.detach())
                figures |= {name: value.detach() for name, value in part.figures.items()}
        finally:
            self.network.eval()
        optimiser.step()
        return {"loss": torch.stack(losses).sum(), **figures, "gradient_norm": torch.stack(norms).norm()}

    def time_step(self) -> tuple[float, int]:
        self.step(0)
        marks = [now(self.device)]
        self.step(1)
        marks.append(now(self.device))
        # once in an epoch; the first time frozen blocks are asked, the others not
        for _ in range(2):
            self.settle(lambda: None)
            marks.append(now(self.device))
        step, first, later = np.diff(marks)
        epochs = self.config.epochs
        count = max(len(self.steps(epoch)) for epoch in range(epochs))
        return float(step + (first + (epochs - 1) * later) / (epochs * count)), count

    def score(self, images: np.ndarray) -> Scores:
        return self._alike(images, None)

    def scorer(self) -> Scorer:
        return lambda images: self._alike(images, images)

    def _alike(self, images: np.ndarray, kept: object | None) -> Scores:
        def scores(part: np.ndarray, batch_size: int) -> np.ndarray:
            return joined(self.walk(part, self.scores_of, kept, batch_size))

        found: Scores = score_alike(scores, images, self.device).astype(np.float64) if len(images) else np.zeros(0)
        return found

    def over(
        self, images: np.ndarray, apply: Callable[[Tensor], Tensor], batch_size: int = AT_ONCE, ask: Ask = lambda: None
    ) -> NDArray[Any]:
        """What `apply` makes of uint8 images, some at a time, as pixels [N, 3, S, S] in [0, 1]; without gradients."""
        return joined(self.walk(images, lambda pixels, frozen: apply(pixels), None, batch_size, ask))

    def walk(
        self,
        images: np.ndarray,
        look: Look,
        kept: object | None,
        batch_size: int = AT_ONCE,
        ask: Ask = lambda: None,
    ) -> Iterator[Tensor]:
        """What `look` makes of uint8 images, some at a time; without gradients.

        kept: what stands for images that are looked at after every epoch (`KeptMaps`); what frozen blocks make of
        them is kept.
        """
        for number, start in enumerate(range(0, len(images), batch_size)):
            ask()
            with torch.inference_mode():
                pixels = to_pixels(images[start : start + batch_size], self.device, self.config.runtime.channels_last)
                frozen = None if kept is None else self._kept.of(kept, number, partial(self.frozen, pixels))
                found = look(pixels, frozen)
            yield found

    def some_normals(self, most: int) -> np.ndarray:
        """Rows of the training normals, or of `most` that the seed draws of more."""
        rows = self.images.normals
        order = torch.randperm(len(rows), generator=stream(self.config.seed, "scale normals")).numpy()
        return rows[np.sort(order[:most])]

    def model_state(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        own, name = self.network.state_dict(), self.config.method.name
        # other frozen blocks give other maps
        self._kept = KeptMaps(device=self.device)
        if any(own[key].dtype != value.dtype for key, value in tensors.items() if key in own):
            raise CheckpointError(f"the model is none of method {name}: its numbers are of other types")
        try:
            self.network.load_state_dict(tensors)
        except RuntimeError as problem:
            line = str(problem).splitlines()[-1].strip()
            raise CheckpointError(f"the model is none of method {name}: {line}") from None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        optimiser = self._prepared.optimiser
        # not all need have had one: members may take turns, and a backbone may hold weights that its maps do not need
        return tensors | moment_tensors(optimiser), values | {STEPPED: len(optimiser.state)}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        # states of before have no such number
        load_moments(self._prepared.optimiser, tensors, (MODEL,), count=values.get(STEPPED))
        self.load_model_state(model_tensors(tensors))

    def module(self) -> nn.Module:
        own = copy.deepcopy(self.network).cpu().to(memory_format=torch.contiguous_format)
        return own.requires_grad_(False).eval()


def frozen_maps(backbone: Backbone, pixels: Tensor, runtime: RuntimeConfig) -> Tensor | None:
    """What the backbone's frozen blocks make of pixels, which `trunk_maps` goes on from; None where none is frozen."""
    if not backbone.kept:
        return None
    with autocast(runtime, pixels.device):
        return backbone.frozen(normalise(pixels))


def trunk_maps(backbone: Backbone, pixels: Tensor, runtime: RuntimeConfig, frozen: Tensor | None = None) -> Tensor:
    """The backbone's map [N, C, s, s] of pixels [N, 3, S, S] in [0, 1]; frozen: `frozen_maps` of them, where known."""
    with autocast(runtime, pixels.device):
        maps: Tensor = backbone(normalise(pixels)) if frozen is None else backbone.after_frozen(frozen)
    return maps.float()


def joined(parts: Iterable[Tensor]) -> NDArray[Any]:
    """Tensors [n, ...] behind each other, one at least."""
    return np.concatenate([part.cpu().numpy() for part in parts])


def _means(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Mean of each figure over the steps that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(torch.stack([row[name] for row in rows if name in row]).double().mean()) for name in names}
