"""A method that is one network, trained by Adam in steps: its epochs, checkpoints, scores and exports."""

from __future__ import annotations

import copy
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from sctune.methods.base import MODEL, Method, Scores, TaskImages, model_tensors
from sctune.methods.pixels import autocast, memory_format, normalise, score_alike, to_pixels

LEAST_NORMALS = 2
"""A standard deviation needs two."""
AT_ONCE = 16
"""Images of one pass between two questions whether to stop."""

Ask = Callable[[], None]
"""Raises StoppedError where the training is to end."""


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

        rate, count = self.config.learning_rate(epoch), self.config.budget.iterations
        for group in self._prepared.optimiser.param_groups:
            group["lr"] = rate
        rows = []
        for number in range(epoch * count, (epoch + 1) * count):
            ask()
            rows.append(self.step(number))
        figures = {**_means(rows), "lr": rate, **self.settle(ask)}
        for name, value in figures.items():
            if not np.isfinite(value):
                raise NonFiniteError(f"{name} is {value} in epoch {epoch + 1}; a smaller optim.lr may help")
        return figures

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
        count = self.config.budget.iterations
        self.step(0)
        started = time.perf_counter()
        self.step(1)
        seconds = time.perf_counter() - started
        # once in an epoch
        self.settle(lambda: None)
        return seconds + (time.perf_counter() - started - seconds) / count, count

    def score(self, images: np.ndarray) -> Scores:
        def scores(part: np.ndarray, batch_size: int) -> np.ndarray:
            return self.over(part, self.network, batch_size)

        found: Scores = score_alike(scores, images, self.device).astype(np.float64) if len(images) else np.zeros(0)
        return found

    def over(
        self, images: np.ndarray, apply: Callable[[Tensor], Tensor], batch_size: int = AT_ONCE, ask: Ask = lambda: None
    ) -> NDArray[Any]:
        """What `apply` makes of uint8 images, some at a time, as pixels [N, 3, S, S] in [0, 1]; without gradients."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                ask()
                pixels = to_pixels(images[start : start + batch_size], self.device, self.config.runtime.channels_last)
                parts.append(apply(pixels).cpu().numpy())
        return np.concatenate(parts)

    def some_normals(self, most: int) -> np.ndarray:
        """Rows of the training normals, or of `most` that the seed draws of more."""
        rows = self.images.normals
        order = torch.randperm(len(rows), generator=stream(self.config.seed, "scale normals")).numpy()
        return rows[np.sort(order[:most])]

    def model_state(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        own, name = self.network.state_dict(), self.config.method.name
        if any(own[key].dtype != value.dtype for key, value in tensors.items() if key in own):
            raise CheckpointError(f"the model is none of method {name}: its numbers are of other types")
        try:
            self.network.load_state_dict(tensors)
        except RuntimeError as problem:
            line = str(problem).splitlines()[-1].strip()
            raise CheckpointError(f"the model is none of method {name}: {line}") from None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        for index, moments in self._prepared.optimiser.state_dict()["state"].items():
            tensors |= {f"optim/{index}/{name}": torch.as_tensor(value) for name, value in moments.items()}
        return tensors, values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        optimiser = self._prepared.optimiser
        moments = _moments(optimiser, {key: value for key, value in tensors.items() if not key.startswith(MODEL)})
        self.load_model_state(model_tensors(tensors))
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})

    def module(self) -> nn.Module:
        own = copy.deepcopy(self.network).cpu().to(memory_format=torch.contiguous_format)
        return own.requires_grad_(False).eval()


def trunk_maps(backbone: Backbone, pixels: Tensor, runtime: RuntimeConfig) -> Tensor:
    """The backbone's map [N, C, s, s] of pixels [N, 3, S, S] in [0, 1]."""
    with autocast(runtime, pixels.device):
        maps: Tensor = backbone(normalise(pixels))
    return maps.float()


def _means(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    return {name: float(torch.stack([row[name] for row in rows]).double().mean()) for name in rows[0]}


def _moments(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Adam's state by the index of its weight; raises CheckpointError where it is of other weights."""
    weights = optimiser.param_groups[0]["params"]
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = re.fullmatch(r"optim/([0-9]{1,6})/(step|exp_avg|exp_avg_sq)", key)
        weight = weights[int(match[1])] if match and int(match[1]) < len(weights) else None
        if match is None or weight is None or value.shape != (() if match[2] == "step" else weight.shape):
            raise CheckpointError(f"the checkpoint does not fit the optimiser: {key!r}")
        found.setdefault(int(match[1]), {})[match[2]] = value
    if any(len(state) != 3 for state in found.values()):
        raise CheckpointError("the checkpoint does not fit the optimiser: a part of its state is missing")
    return found
