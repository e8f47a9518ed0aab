"""MLEP's image form: triples of images in a step, and the scale of scores after each epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.augment.changes import changed
from sctune.backbones.trunk import build_backbone
from sctune.config import TrialConfig
from sctune.data.batches import endless, stream
from sctune.methods.base import Maps, Scores, Variant
from sctune.methods.mlep.entry import MlepSection
from sctune.methods.mlep.loss import margin_loss, reconstruction
from sctune.methods.mlep.network import DISTANCE, LEAST_DEVIATION, MlepNetwork
from sctune.methods.network import Ask, NetworkMethod, Part, joined, trunk_maps
from sctune.methods.pixels import to_images, to_pixels

ERROR, WEIGHT = "method.error", "method.distance"
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Of the distance, that `sctune rescore` tries."""


@dataclass(frozen=True)
class Triples:
    """Images [N, 3, S, S] in [0, 1]: anchors first, positives from `positives` on, negatives from `negatives` on."""

    images: Tensor
    positives: int
    negatives: int


class MlepMethod(NetworkMethod):
    network: MlepNetwork

    @classmethod
    def build(cls, config: TrialConfig, weights: Path | None) -> nn.Module:
        return MlepNetwork(config, build_backbone(config.model, weights))

    def triples(self, number: int) -> Triples:
        """The images of a step: normal slots, half of them anchors and half positives, then seen anomalies.

        Without labelled anomalies there are no negatives. Both kinds come from endless permutations, each image
        turned and changed by draws of its own.
        """
        config, images = self.config, self.images
        slots, seed = config.normal_slots, config.seed
        rows = [images.normals[endless(len(images.normals), slots, number, seed, "normal")]]
        if config.n_anomalies != 0:
            left = config.budget.batch_size - slots
            rows.append(images.anomalies[endless(len(images.anomalies), left, number, seed, "seen")])
        drawn = np.concatenate(rows)
        if config.data.shuffle_labels:
            drawn = drawn[torch.randperm(len(drawn), generator=stream(seed, "shuffle", number)).numpy()]
        pixels = to_pixels(images.take(drawn), self.device, config.runtime.channels_last)
        moved, _ = changed(pixels, config.augment, seed, "rotation", number)
        return Triples(moved, (slots + 1) // 2, slots)

    def losses(self, number: int) -> Iterator[Part]:
        triples, section = self.triples(number), self._section
        normal, first = triples.images[: triples.negatives], triples.positives
        z = self.network.embed(triples.images)
        error = reconstruction(normal, self.network.decoder(z[: triples.negatives]), first)
        if triples.negatives == len(triples.images):
            yield Part(error, self.network, {"loss_error": error})
            return
        margin = margin_loss(z[:first], z[first : triples.negatives], z[triples.negatives :], section.margin)
        figures = {"loss_error": error, "loss_hinge": margin.hinge, "near": margin.near, "far": margin.far}
        yield Part(error + section.hinge_weight * margin.hinge, self.network, figures)

    def settle(self, ask: Ask) -> dict[str, float]:
        """Mean z of normal images as they are, and the moments of the parts of a score on them."""
        network, images, most = self.network, self.images, self._section.scale_normals
        normals = images.take(self.some_normals(most))
        network.typical.copy_(self._mean_z(normals, ask))
        parts = joined(self.walk(normals, network.parts, images.normals, ask=ask)).astype(np.float64)
        deviations = np.maximum(parts.std(axis=0, ddof=1), LEAST_DEVIATION)
        network.moments.copy_(torch.from_numpy(np.stack([parts.mean(axis=0), deviations])))
        figures = {"normal_error": float(parts[:, 0].mean()), "normal_distance": float(parts[:, DISTANCE].mean())}
        if len(images.anomalies) and self.config.n_anomalies != 0:
            seen = self.walk(images.take(images.anomalies[:most]), network.parts, images.anomalies, ask=ask)
            away = network.scaled(torch.cat(list(seen))).cpu().numpy().mean(axis=0)
            # in standard deviations of the normals: which part tells the two apart in training
            names = ("seen_error", "seen_top_error", "seen_distance")
            figures |= {name: float(value) for name, value in zip(names, away, strict=True)}
        return figures

    def _mean_z(self, normals: np.ndarray, ask: Ask) -> Tensor:
        """[C, s, s] of training normals; z is not held, since several maps of 200 large images are gigabytes."""
        total = torch.zeros_like(self.network.typical, dtype=torch.float64)
        for z in self.walk(normals, self.network.embed, self.images.normals, ask=ask):
            total += z.sum(dim=0, dtype=torch.float64)
        return total / len(normals)

    def frozen(self, pixels: Tensor) -> Tensor | None:
        return self.network.frozen(pixels)

    def scores_of(self, pixels: Tensor, frozen: Tensor | None) -> Tensor:
        return self.network.combined(self.network.parts(pixels, frozen))

    def cells(self, images: np.ndarray) -> Maps | None:
        return self.over(images, self.network.cells).astype(np.float32)

    def views(self, images: np.ndarray) -> dict[str, np.ndarray]:
        net = self.network
        return {"made anew": self.over(images, lambda pixels: to_images(net.decoder(net.embed(pixels))))}

    def embed(self, images: np.ndarray) -> NDArray[np.float32] | None:
        if not len(images):
            return None
        net = self.network
        return self.over(images, lambda pixels: trunk_maps(net.backbone, pixels, net.runtime).mean(dim=(2, 3)))

    @staticmethod
    def variants(config: TrialConfig) -> list[Variant]:
        own = {ERROR: config.flat()[ERROR], WEIGHT: config.flat()[WEIGHT]}
        others = [{ERROR: error, WEIGHT: weight} for error, weight in itertools.product(("mean", "top"), WEIGHTS)]
        return [own, *(point for point in others if point != own)]

    def variant_scores(self, images: np.ndarray, variants: Sequence[Variant]) -> list[Scores]:
        parts = torch.from_numpy(self.over(images, self.network.parts)).to(self.device)
        found = []
        for variant in variants:
            section = self.config.override(variant).method
            assert isinstance(section, MlepSection)
            found.append(self.network.combined(parts, section).cpu().numpy().astype(np.float64))
        return found

    @property
    def _section(self) -> MlepSection:
        assert isinstance(self.config.method, MlepSection)
        return self.config.method
