"""One training step: slots, rotation, pseudo anomalies, loss and update (METHODS 1.1).

Saliency is computed for donors only, in eval mode and without gradients of the parameters: the same maps
as a pass over the whole batch (samples are independent there), for a third of the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sctune.augment.saliencycut import PseudoAnomalies, saliencycut
from sctune.config import TrialConfig
from sctune.data.batches import NORMAL, PSEUDO, draw_slots, rotate, rotation_angles, stream
from sctune.model.detector import ANOMALY, Detector, head_targets, normalise, to_pixels
from sctune.model.detector import NORMAL as NORMAL_HEAD
from sctune.model.loss import deviation, deviation_loss, deviation_losses

BANK_SHARE = 4
"""With refresh=epoch, one pseudo anomaly is made for every so many slots that the epoch will fill."""


@dataclass(frozen=True)
class TrainingImages:
    """Decoded images uint8 [N, S, S, 3] and the rows of the training normals and anomalies in it."""

    array: np.ndarray
    normals: np.ndarray
    anomalies: np.ndarray

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows]


@dataclass(frozen=True)
class Bank:
    """Pseudo anomalies made before an epoch: images [M, 3, S, S], pasted share, dropped and flat [M]."""

    images: Tensor
    share: Tensor
    dropped: Tensor
    flat: Tensor


class TrainingStep:
    """Runs step number 0, 1, ... of a training; the number alone decides what is drawn."""

    def __init__(
        self,
        config: TrialConfig,
        detector: Detector,
        optimiser: torch.optim.Optimizer,
        images: TrainingImages,
        device: torch.device,
    ) -> None:
        self.config = config
        self.detector = detector
        self.optimiser = optimiser
        self.images = images
        self.device = device
        self.forward: nn.Module = torch.compile(detector) if config.runtime.compile else detector  # type: ignore[assignment]
        self.bank: Bank | None = None

    def start_epoch(self, first: int) -> None:
        """Make the epoch's pseudo anomalies where they are made once per epoch (`first`: its first step)."""
        augment = self.config.augment
        if augment.kind == "saliencycut" and augment.refresh == "epoch":
            self.bank = self._make_bank(first)

    def run(self, number: int) -> dict[str, Tensor]:
        """One update; scalar tensors by metric name."""
        config = self.config
        pseudo = config.augment.kind != "none"
        slots = draw_slots(
            len(self.images.normals),
            len(self.images.anomalies) if config.n_anomalies != 0 else 0,
            config.normal_slots,
            config.budget.batch_size,
            number,
            config.seed,
            pseudo,
            config.augment.allow_self,
        )
        normal = self.images.normals[slots.index[: config.normal_slots]]
        seen = self.images.anomalies[slots.index[config.normal_slots :]]
        images, valid = self._load(np.concatenate([normal, seen]), "rotation", number)
        labels = torch.from_numpy(slots.labels)
        metrics: dict[str, Tensor] = {}
        places = np.flatnonzero(slots.labels == PSEUDO)
        if len(places) and self.bank is not None:
            metrics = self._from_bank(images, labels, places, number)
        elif len(places):
            metrics = self._paste(images, valid, labels, places, slots.donors, number)
        return metrics | self._update(images, labels.to(self.device), number)

    def pseudo_anomalies(self, donors: Tensor, receivers: Tensor, valid: Tensor, number: int) -> PseudoAnomalies:
        """Pseudo anomalies from normalised donors and receivers [M, 3, S, S] with the current weights."""
        gradient, _ = self.saliency_gradient(donors, number)
        return saliencycut(
            donors, receivers, gradient, valid, self.config.augment, stream(self.config.seed, "rect", number)
        )

    def saliency_gradient(self, images: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Gradient [N, 3, S, S] of the loss of normal images, and where the anomaly head alone gives it [N].

        In eval mode and with parameters frozen: weights, their gradients and batch-norm statistics stay as they are.
        """
        config = self.config
        labels = torch.full((len(images),), NORMAL, device=self.device)
        with frozen(self.detector):
            inputs = images.detach().requires_grad_()
            offsets = self.detector.draw_offsets(len(inputs), stream(config.seed, "saliency", number))
            scores = self.forward(inputs, offsets)
            prior = stream(config.seed, "saliency prior", number)
            losses = [
                deviation_losses(scores[head], target, config.loss.margin, config.loss.prior, prior).sum()
                for head, target in head_targets(labels).items()
            ]
            (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), inputs)
        # beyond the margin the normal head's loss is flat: its gradient is zero
        saturated = deviation(scores[NORMAL_HEAD].detach()) >= config.loss.margin
        return gradient, saturated

    def _load(self, rows: np.ndarray, purpose: str, number: int) -> tuple[Tensor, Tensor]:
        """Rotated, normalised images [N, 3, S, S] and where they are real [N, 1, S, S]."""
        config = self.config
        pixels = to_pixels(self.images.take(rows), self.device, config.runtime.channels_last)
        degrees = config.augment.rotation_degrees
        angles = rotation_angles(len(rows), degrees, stream(config.seed, purpose, number))
        turned, valid = rotate(pixels, angles, config.augment.rotation_fill)
        return normalise(turned), valid

    def _paste(
        self, images: Tensor, valid: Tensor, labels: Tensor, places: np.ndarray, donors: np.ndarray, number: int
    ) -> dict[str, Tensor]:
        unique, back = np.unique(donors, return_inverse=True)
        gradient, saturated = self.saliency_gradient(images[unique], number)
        made = saliencycut(
            images[donors],
            images[places],
            gradient[back],
            valid[donors] & valid[places],
            self.config.augment,
            stream(self.config.seed, "rect", number),
        )
        images[places] = made.images
        labels[torch.from_numpy(places)[made.dropped.cpu()]] = NORMAL
        return {
            "pasted_fraction": made.pasted.float().mean(),
            "flat_maps": made.flat.float().mean(),
            "anomaly_head_saliency": saturated.float().mean(),
        }

    def _from_bank(self, images: Tensor, labels: Tensor, places: np.ndarray, number: int) -> dict[str, Tensor]:
        assert self.bank is not None
        chosen = torch.randint(
            len(self.bank.images), (len(places),), generator=stream(self.config.seed, "bank slots", number)
        ).to(self.device)
        images[places] = self.bank.images[chosen]
        labels[torch.from_numpy(places)[self.bank.dropped[chosen].cpu()]] = NORMAL
        return {
            "pasted_fraction": self.bank.share[chosen].mean(),
            "flat_maps": self.bank.flat[chosen].float().mean(),
        }

    def _make_bank(self, first: int) -> Bank:
        config, total = self.config, len(self.images.normals)
        budget = config.budget
        count = max(1, min(total, budget.iterations * config.normal_slots // (2 * BANK_SHARE)))
        rng = np.random.default_rng(stream(config.seed, "bank", first).initial_seed() % 2**63)
        receivers = rng.integers(total, size=count)
        donors = rng.integers(total, size=count)
        if not config.augment.allow_self and total > 1:
            same = donors == receivers
            donors[same] = (donors[same] + 1 + rng.integers(total - 1, size=int(same.sum()))) % total
        parts = []
        for start in range(0, count, budget.batch_size):
            part = slice(start, start + budget.batch_size)
            donor, real_a = self._load(self.images.normals[donors[part]], f"bank donor {start}", first)
            receiver, real_b = self._load(self.images.normals[receivers[part]], f"bank receiver {start}", first)
            parts.append(self.pseudo_anomalies(donor, receiver, real_a & real_b, first))
        return Bank(
            torch.cat([made.images for made in parts]),
            torch.cat([made.pasted.float().mean(dim=(1, 2, 3)) for made in parts]),
            torch.cat([made.dropped for made in parts]),
            torch.cat([made.flat for made in parts]),
        )

    def _update(self, images: Tensor, labels: Tensor, number: int) -> dict[str, Tensor]:
        config = self.config
        offsets = self.detector.draw_offsets(len(images), stream(config.seed, "offsets", number))
        prior = stream(config.seed, "prior", number)
        scores = self.forward(images, offsets)
        losses = {
            head: deviation_loss(scores[head], target, config.loss.margin, config.loss.prior, prior)
            for head, target in head_targets(labels).items()
        }
        loss = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.detector.parameters(), config.optim.clip_norm)
        self.optimiser.step()
        return {
            "loss": loss.detach(),
            "loss_normal": losses[NORMAL_HEAD].detach(),
            "loss_anomaly": losses[ANOMALY].detach(),
            "gradient_norm": norm.detach(),
        }


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Eval mode and no parameter gradients inside; the state before is put back."""
    was_training = module.training
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    module.eval()
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
        module.train(was_training)
