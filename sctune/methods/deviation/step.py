"""One training step: slots, pseudo anomalies, loss and update (METHODS 1.1).

Saliency is computed for donors only, in eval mode and without gradients of the parameters: the same maps
as a pass over the whole batch (samples are independent there), for a third of the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from sctune.config import TrialConfig
from sctune.data.batches import NORMAL, draw_slots, stream
from sctune.data.transfer import to_device
from sctune.methods.base import TaskImages
from sctune.methods.deviation.detector import Detector
from sctune.methods.deviation.images import References
from sctune.methods.deviation.loss import deviation, deviation_losses
from sctune.methods.deviation.pseudo import Batch, PseudoSource
from sctune.methods.deviation.roles import NORMAL_HEAD, head_losses


class TrainingStep:
    """Runs step number 0, 1, ... of a training; the number alone decides what is drawn."""

    def __init__(
        self,
        config: TrialConfig,
        detector: Detector,
        optimiser: torch.optim.Optimizer,
        images: TaskImages,
        device: torch.device,
    ) -> None:
        self.config = config
        self.detector = detector
        self.optimiser = optimiser
        self.images = images
        self.device = device
        self.forward: nn.Module = torch.compile(detector) if config.runtime.compile else detector  # type: ignore[assignment]
        self.pseudo = PseudoSource(config, images, device, self.saliency_gradient)
        self.references = References(config, images, device) if detector.needs_references else None

    def start_epoch(self, first: int) -> None:
        """What happens once before the steps of an epoch (`first`: its first step)."""
        self.pseudo.start_epoch(first)

    def run(self, number: int) -> dict[str, Tensor]:
        """One update; scalar tensors by metric name."""
        batch = self.batch(number)
        labels = batch.labels
        if self.config.data.shuffle_labels:
            order = torch.randperm(len(labels), generator=stream(self.config.seed, "shuffle", number))
            labels = labels[to_device(order, labels.device)]
        return batch.metrics | self._update(batch.images, labels, number)

    def batch(self, number: int) -> Batch:
        """The images and labels of a step, pseudo anomalies made with the current weights."""
        config = self.config
        slots = draw_slots(
            len(self.images.normals),
            len(self.images.anomalies) if config.n_anomalies != 0 else 0,
            config.normal_slots,
            config.budget.batch_size,
            number,
            config.seed,
            config.augment.kind != "none",
            config.augment.donor_may_be_receiver,
        )
        normal = self.images.normals[slots.index[: config.normal_slots]]
        seen = self.images.anomalies[slots.index[config.normal_slots :]]
        return self.pseudo.batch(np.concatenate([normal, seen]), slots, number)

    def saliency_gradient(self, images: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Gradient [N, 3, S, S] of the loss of normal images, and where the normal head gives none of it [N].

        In eval mode and with parameters frozen: weights, their gradients and batch-norm statistics stay as they are.
        """
        config = self.config
        labels = torch.full((len(images),), NORMAL, device=self.device)
        with frozen(self.detector):
            inputs = images.detach().requires_grad_()
            offsets = self.detector.draw_offsets(len(inputs), stream(config.seed, "saliency", number))
            references = self.reference_images(number)
            # their features are constants here: no gradient runs through them
            maps = None if references is None else self.detector.reference_maps(references)
            scores = self.forward(inputs, offsets, maps)
            prior = stream(config.seed, "saliency prior", number)
            losses = [
                deviation_losses(scores[head], role.targets(labels), config.loss.margin, config.loss.prior, prior).sum()
                for head, role in self.detector.roles.items()
            ]
            (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), inputs)
        if NORMAL_HEAD not in scores:
            return gradient, torch.ones_like(labels, dtype=torch.bool)
        # beyond the margin the normal head's loss is flat: its gradient is zero
        return gradient, deviation(scores[NORMAL_HEAD].detach()) >= config.loss.margin

    def reference_images(self, number: int) -> Tensor | None:
        """Normalised references [R, 3, S, S] of a step; None where no head compares with any."""
        return None if self.references is None else self.references.for_step(number)

    def _update(self, images: Tensor, labels: Tensor, number: int) -> dict[str, Tensor]:
        config = self.config
        offsets = self.detector.draw_offsets(len(images), stream(config.seed, "offsets", number))
        prior = stream(config.seed, "prior", number)
        scores = self.forward(images, offsets, self.reference_images(number))
        losses = head_losses(scores, labels, self.detector.roles, config.loss, prior)
        loss = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.detector.parameters(), config.optim.clip_norm)
        self.optimiser.step()
        parts = {f"loss_{head}": value.detach() for head, value in losses.items()}
        return {"loss": loss.detach(), **parts, "gradient_norm": norm.detach()}


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
