"""KDAD as a method: a frozen source, the cloner that learns from it, and what training needs besides."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.backbones.trunk import build_backbone
from sctune.backbones.weights import resolve_weights
from sctune.config import TrialConfig
from sctune.data.batches import stream
from sctune.errors import CheckpointError, NonFiniteError, StoppedError
from sctune.methods.base import MODEL, Maps, Method, Scorer, Scores, TaskImages, Variant, model_tensors
from sctune.methods.clock import now
from sctune.methods.kdad.cloner import Cloner, stages_of
from sctune.methods.kdad.entry import critical_taps, kdad_section, rectified, tap_names
from sctune.methods.kdad.heat import opened
from sctune.methods.kdad.kept import KeptMaps, KeptRows
from sctune.methods.kdad.pair import Pair, score_weights
from sctune.methods.kdad.training import Training
from sctune.methods.moments import load_moments, moment_tensors
from sctune.methods.pixels import autocast, memory_format, score_alike, to_pixels
from sctune.methods.untrained.extractor import FrozenChoice

REPEATED_BYTES = 2**28
"""Of the source's maps of images that are scored after every epoch."""
VALUE_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the value part, that a rescoring tries."""


class KdadMethod(Method):
    """Learns from normal images alone; labelled anomalies are not looked at.

    Which images a step sees follows from (seed, step), so the state is both networks, the scale of the layers and
    Adam's moments.
    """

    def __init__(self, config: TrialConfig, device: torch.device, pair: Pair) -> None:
        super().__init__(config, device)
        self.pair = pair.to(device).to(memory_format=memory_format(config.runtime)).eval()
        self._training: Training | None = None
        self._repeated = self._nothing_kept()

    @classmethod
    def fresh(cls, config: TrialConfig, device: torch.device, weights: Path | None = None) -> Self:
        if weights is None:
            weights = resolve_weights(config.model.backbone, config.model.weights)
        return cls(config, device, build_pair(config, weights))

    @classmethod
    def trained(cls, config: TrialConfig, device: torch.device, tensors: Mapping[str, Tensor]) -> Self:
        method = cls(config, device, build_pair(config, None))
        method.load_model_state(tensors)
        return method

    def prepare(self, images: TaskImages) -> None:
        limit = kdad_section(self.config).cache_mb * 2**20
        kept = KeptMaps(self._rows, images, self.pair.dimension, limit, self.config.model.backbone)
        self._training = Training(self.config, self.pair, images, kept)

    @property
    def training(self) -> Training:
        """What training needs beside the networks; raises ValueError before `prepare`."""
        if self._training is None:
            raise ValueError("the method has no images to train on; call prepare first")
        return self._training

    def run_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        def ask() -> None:
            if should_stop():
                raise StoppedError(f"stopped in epoch {epoch + 1}")

        training, rows = self.training, []
        if epoch == 0 and kdad_section(self.config).relative:
            training.measure(ask)
        self.pair.cloner.train()
        try:
            for places in training.batches(epoch):
                ask()
                rows.append(training.run(places))
        finally:
            self.pair.cloner.eval()
        return _means(rows, epoch) | {"kept_images": float(training.kept.held)}

    def score(self, images: np.ndarray) -> Scores:
        return self._scores(self._differences(images))

    def scorer(self) -> Scorer:
        return lambda images: self._scores(self._differences(images, self._repeated.of(images)))

    def model_state(self) -> dict[str, Tensor]:
        return dict(self.pair.state_dict())

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        own = self.pair.state_dict()
        wrong = sorted({*own} ^ {*tensors}) + [
            name
            for name in sorted({*own} & {*tensors})
            if (own[name].shape, own[name].dtype) != (tensors[name].shape, tensors[name].dtype)
        ]
        if wrong:
            raise CheckpointError(
                f"the model is none of method kdad as it is configured: {len(wrong)} tensors are missing, left over or "
                f"of another shape or type, the first is {wrong[0]!r}"
            )
        self.pair.load_state_dict(tensors)
        # what is kept is of the source that was there before
        self._repeated = self._nothing_kept()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        return tensors | moment_tensors(self.training.optimiser), values

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        load_moments(self.training.optimiser, tensors, (MODEL,), whole=True)
        self.load_model_state(model_tensors(tensors))

    def module(self) -> nn.Module:
        return copy.deepcopy(self.pair).cpu().to(memory_format=torch.contiguous_format).requires_grad_(False).eval()

    @property
    def images_per_epoch(self) -> int:
        return self.training.length.of(0) * self.config.budget.batch_size

    def time_step(self) -> tuple[float, int]:
        training = self.training
        places = next(training.batches(0))
        started = now(self.device)
        training.kept.of(places)
        look = (now(self.device) - started) / len(places)
        self.pair.cloner.train()
        training.run(places)
        started = now(self.device)
        # looks again at what finds no room
        training.run(places)
        seconds = now(self.device) - started
        self.pair.cloner.eval()
        # the memory of a dry run is to be that of a training
        training.kept.take_room()
        steps, count = training.length.whole, len(training.images.normals)
        share = training.kept.room / count
        measured = training.measured if kdad_section(self.config).relative else 0
        # what finds room is looked at once in a training, what finds none once more where the layers are measured
        once = share * min(count, max(steps * len(places), measured)) + (1 - share) * measured
        return seconds + look * once / steps, training.length.longest

    def gradients(self, images: np.ndarray) -> Maps | None:
        with torch.enable_grad():
            pixels = to_pixels(images, self.device, self.config.runtime.channels_last).requires_grad_()
            (gradient,) = torch.autograd.grad(self.pair(pixels).sum(), pixels)
        return opened(gradient)

    def views(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Where the copy of each layer that scores is unlike the source's map, cell by cell."""
        if not len(images):
            return {}
        with torch.inference_mode():
            pixels = to_pixels(images, self.device, self.config.runtime.channels_last)
            maps = self._maps(pixels)
            with autocast(self.config.runtime, self.device):
                copies = self.pair.copies(pixels)
            apart = self.pair.cell_differences(maps, copies)
        skip = kdad_section(self.config).score_skip
        strides = [tap.stride for tap in critical_taps(self.config)]
        names = [f"unlike its copy, stride {stride}" for stride in strides]
        return {name: one.cpu().numpy() for name, one in list(zip(names, apart, strict=True))[skip:]}

    def embed(self, images: np.ndarray) -> NDArray[np.float32] | None:
        return self._each(
            images, lambda pixels, start: torch.cat([one.mean(dim=(2, 3)) for one in self._maps(pixels)], dim=1)
        )

    @staticmethod
    def variants(config: TrialConfig) -> list[Variant]:
        section = kdad_section(config)
        first = _variant(section.score_skip, _score_value(config))
        others = [_variant(skip, value) for skip in range(len(tap_names(config))) for value in VALUE_WEIGHTS]
        return [first, *(one for one in others if one != first)]

    def variant_scores(self, images: np.ndarray, variants: Sequence[Variant]) -> list[Scores]:
        differences = self._differences(images)
        return [self._scores(differences, _weights(self.config.override(one))) for one in variants]

    def _nothing_kept(self) -> KeptRows:
        return KeptRows(self._rows, self.pair.dimension, REPEATED_BYTES)

    def _rows(self, images: np.ndarray) -> NDArray[np.float32]:
        """The source's maps of uint8 images [N, S, S, 3], [N, D]."""
        return self._each(images, lambda pixels, start: self.pair.rows(self._maps(pixels)))

    def _differences(self, images: np.ndarray, rows: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """[N, L, 2] of uint8 images [N, S, S, 3]; rows [n, D]: the source's maps of the first n, n from 0 to N."""
        known = 0 if rows is None else len(rows)

        def look(pixels: Tensor, start: int) -> Tensor:
            stop = start + len(pixels)
            # a batch is filled up behind the last image
            if rows is not None and known >= min(stop, len(images)):
                maps = self._known(rows[start:stop], len(pixels))
            else:
                maps = self._maps(pixels)
            with autocast(self.config.runtime, self.device):
                copies = self.pair.copies(pixels)
            return self.pair.differences(maps, copies)

        return self._each(images, look)

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        with autocast(self.config.runtime, self.device):
            return self.pair.source_maps(pixels)

    def _known(self, rows: NDArray[np.float32], count: int) -> list[Tensor]:
        """The maps in rows [N, D], filled up to `count` images."""
        filled = np.concatenate([rows, np.zeros((count - len(rows), rows.shape[1]), np.float32)])
        return self.pair.unrolled(torch.from_numpy(filled).to(self.device))

    def _each(self, images: np.ndarray, look: Callable[[Tensor, int], Tensor]) -> NDArray[np.float32]:
        """What `look` makes of the pixels of some images, and the place of the first of them; for all, [N, ...]."""

        def parts(some: np.ndarray, size: int) -> NDArray[np.float32]:
            found = []
            for start in range(0, len(some), size):
                pixels = to_pixels(some[start : start + size], self.device, self.config.runtime.channels_last)
                found.append(look(pixels, start).cpu().numpy())
            return np.concatenate(found)

        with torch.inference_mode():
            if len(images):
                return score_alike(parts, images, self.device)
            side = images.shape[1]
            return look(torch.zeros(1, 3, side, side, device=self.device), 0).cpu().numpy()[:0]

    def _scores(self, differences: NDArray[np.float32], weights: Tensor | None = None) -> Scores:
        held = self.pair.weights.cpu() if weights is None else weights
        scores: Scores = (differences.astype(np.float64) * held.double().numpy()).sum(axis=(1, 2))
        return scores


def build_pair(config: TrialConfig, weights: Path | None) -> Pair:
    """Both networks; the cloner's weights follow from the seed, and those of the source from the file, or the seed.

    Raises WeightsError as `build_backbone` does.
    """
    section, taps, side = kdad_section(config), critical_taps(config), config.data.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(config.seed, "source").initial_seed())
        source = build_backbone(FrozenChoice(config.model.backbone, tap_names(config)), weights)
        torch.manual_seed(stream(config.seed, "cloner").initial_seed())
        cloner = Cloner(stages_of(taps, section.cloner, section.cloner_width), rectified(config))
    shapes = [(tap.channels, side // tap.stride, side // tap.stride) for tap in taps]
    return Pair(source, cloner, shapes, section.normalise, _weights(config))


def _score_value(config: TrialConfig) -> float:
    section = kdad_section(config)
    return section.value_weight if section.score_value is None else section.score_value


def _weights(config: TrialConfig) -> Tensor:
    return score_weights(len(tap_names(config)), kdad_section(config).score_skip, _score_value(config))


def _variant(skip: int, value: float) -> Variant:
    return {"method.score_skip": skip, "method.score_value": value}


def _means(rows: Sequence[Mapping[str, Tensor]], epoch: int) -> dict[str, float]:
    """Mean of each figure over the steps of an epoch."""
    metrics = {name: float(torch.stack([row[name] for row in rows]).double().mean()) for name in rows[0]}
    for name, value in metrics.items():
        if not np.isfinite(value):
            raise NonFiniteError(f"{name} is {value} in epoch {epoch + 1}; a smaller method.cloner_lr may help")
    return metrics
