"""Pseudo anomalies of a batch: made from its images in every step, or taken from a bank that is made per epoch.

CutMix and CutPaste change pixels before augmentation; SaliencyCut needs gradients, so it works on the augmented and
normalised images that the network sees (METHODS 1.1, 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sctune.augment.makers import PIXEL_MAKERS
from sctune.augment.saliencycut import PseudoAnomalies, saliencycut
from sctune.config import TrialConfig
from sctune.data.batches import NORMAL, PSEUDO, Slots, stream
from sctune.data.transfer import rows_on, to_device
from sctune.methods.base import TaskImages
from sctune.methods.deviation.images import augmented, pixels_of
from sctune.methods.pixels import normalise

BANK_SHARE = 4
"""With refresh=epoch, one pseudo anomaly is made for every so many slots that the epoch will fill."""

Saliency = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Normalised images [N, 3, S, S] and the step -> gradient [N, 3, S, S], saturated [N]."""


@dataclass(frozen=True)
class Bank:
    """Pseudo anomalies made before an epoch: images [M, 3, S, S], pasted share, dropped and flat [M]."""

    images: Tensor
    share: Tensor
    dropped: Tensor
    flat: Tensor


@dataclass(frozen=True)
class Batch:
    """images [B, 3, S, S], normalised; labels [B]; metrics: scalar tensors about the pseudo anomalies."""

    images: Tensor
    labels: Tensor
    metrics: dict[str, Tensor]


class PseudoSource:
    """Turns rows and slots into batches; saliency: how SaliencyCut gets its gradients."""

    def __init__(self, config: TrialConfig, images: TaskImages, device: torch.device, saliency: Saliency) -> None:
        self.config = config
        self.images = images
        self.device = device
        self.saliency = saliency
        self.maker = PIXEL_MAKERS.get(config.augment.kind)
        self.bank: Bank | None = None

    def start_epoch(self, first: int) -> None:
        """Make the epoch's pseudo anomalies where they are made once per epoch (`first`: its first step)."""
        augment = self.config.augment
        if augment.kind != "none" and augment.refresh == "epoch":
            self.bank = self._make_bank(first)

    def batch(self, rows: np.ndarray, slots: Slots, number: int) -> Batch:
        """The batch of step `number`; rows [B] of the images that its slots hold before anything is pasted."""
        labels = to_device(torch.from_numpy(slots.labels.copy()), self.device)
        places = np.flatnonzero(slots.labels == PSEUDO)
        pixels = pixels_of(self.images, rows, self.config, self.device)
        metrics: dict[str, Tensor] = {}
        if len(places) and self.maker is not None and self.bank is None:
            generator = stream(self.config.seed, "cut", number)
            taking, giving = rows_on(places, self.device), rows_on(slots.donors, self.device)
            cut = self.maker(pixels[taking], pixels[giving], self.config.augment, generator)
            pixels[taking] = cut.images
            metrics = {"pasted_fraction": cut.pasted.float().mean()}
        images, valid = augmented(pixels, self.config, "rotation", number)
        if len(places) and self.bank is not None:
            metrics = self._from_bank(self.bank, images, labels, places, number)
        elif len(places) and self.maker is None:
            metrics = self._paste(images, valid, labels, places, slots.donors, number)
        return Batch(images, labels, metrics)

    def alter(self, receivers: Tensor, donors: Tensor, number: int) -> PseudoAnomalies:
        """Pseudo anomalies of pixels [M, 3, S, S] in [0, 1] that are not augmented, with the current weights."""
        if self.maker is None:
            valid = torch.ones_like(donors[:, :1], dtype=torch.bool)
            return self._cut_by_saliency(normalise(donors), normalise(receivers), valid, number)
        cut = self.maker(receivers, donors, self.config.augment, stream(self.config.seed, "cut", number))
        none = torch.zeros(len(receivers), dtype=torch.bool, device=receivers.device)
        return PseudoAnomalies(normalise(cut.images), cut.pasted, None, none, none)

    def _cut_by_saliency(self, donors: Tensor, receivers: Tensor, valid: Tensor, number: int) -> PseudoAnomalies:
        gradient, _ = self.saliency(donors, number)
        generator = stream(self.config.seed, "rect", number)
        return saliencycut(donors, receivers, gradient, valid, self.config.augment, generator)

    def _paste(
        self, images: Tensor, valid: Tensor, labels: Tensor, places: np.ndarray, donors: np.ndarray, number: int
    ) -> dict[str, Tensor]:
        unique, back = np.unique(donors, return_inverse=True)
        giving, taking = rows_on(donors, self.device), rows_on(places, self.device)
        gradient, saturated = self.saliency(images[rows_on(unique, self.device)], number)
        made = saliencycut(
            images[giving],
            images[taking],
            gradient[rows_on(back, self.device)],
            valid[giving] & valid[taking],
            self.config.augment,
            stream(self.config.seed, "rect", number),
        )
        images[taking] = made.images
        labels[taking] = self._labels(made.dropped, labels)
        return {
            "pasted_fraction": made.pasted.float().mean(),
            "flat_maps": made.flat.float().mean(),
            "anomaly_head_saliency": saturated.float().mean(),
        }

    @staticmethod
    def _labels(dropped: Tensor, labels: Tensor) -> Tensor:
        """Of pseudo slots; which were dropped is known on their device only, and nothing waits for it."""
        return torch.where(dropped, NORMAL, PSEUDO).to(labels.dtype)

    def _from_bank(
        self, bank: Bank, images: Tensor, labels: Tensor, places: np.ndarray, number: int
    ) -> dict[str, Tensor]:
        generator = stream(self.config.seed, "bank slots", number)
        chosen = to_device(torch.randint(len(bank.images), (len(places),), generator=generator), self.device)
        taking = rows_on(places, self.device)
        images[taking] = bank.images[chosen]
        labels[taking] = self._labels(bank.dropped[chosen], labels)
        metrics = {"pasted_fraction": bank.share[chosen].mean()}
        return metrics if self.maker is not None else metrics | {"flat_maps": bank.flat[chosen].float().mean()}

    def _make_bank(self, first: int) -> Bank:
        config, total = self.config, len(self.images.normals)
        budget = config.budget
        count = max(1, min(total, budget.iterations * config.normal_slots // (2 * BANK_SHARE)))
        rng = np.random.default_rng(stream(config.seed, "bank", first).initial_seed() % 2**63)
        receivers = rng.integers(total, size=count)
        donors = rng.integers(total, size=count)
        if not config.augment.donor_may_be_receiver and total > 1:
            same = donors == receivers
            donors[same] = (donors[same] + 1 + rng.integers(total - 1, size=int(same.sum()))) % total
        parts = []
        for start in range(0, count, budget.batch_size):
            part = slice(start, start + budget.batch_size)
            parts.append(self._bank_part(receivers[part], donors[part], start, first))
        return Bank(
            torch.cat([made.images for made in parts]),
            torch.cat([made.pasted.float().mean(dim=(1, 2, 3)) for made in parts]),
            torch.cat([made.dropped for made in parts]),
            torch.cat([made.flat for made in parts]),
        )

    def _bank_part(self, receivers: np.ndarray, donors: np.ndarray, start: int, first: int) -> PseudoAnomalies:
        config, normals = self.config, self.images.normals
        receiver = pixels_of(self.images, normals[receivers], config, self.device)
        donor = pixels_of(self.images, normals[donors], config, self.device)
        if self.maker is not None:
            cut = self.maker(receiver, donor, config.augment, stream(config.seed, "bank cut", start, first))
            images, _ = augmented(cut.images, config, f"bank receiver {start}", first)
            none = torch.zeros(len(images), dtype=torch.bool, device=self.device)
            return PseudoAnomalies(images, cut.pasted, None, none, none)
        giving, real_a = augmented(donor, config, f"bank donor {start}", first)
        taking, real_b = augmented(receiver, config, f"bank receiver {start}", first)
        return self._cut_by_saliency(giving, taking, real_a & real_b, first)
