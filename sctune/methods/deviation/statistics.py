"""Batch-norm statistics of a finished training, estimated anew: the plain mean over an epoch's number of images.

Running statistics are an exponential mean over steps in which the weights still moved; with EfficientNet-Lite0's
momentum of .01, 120 steps leave 30 % of ImageNet's in them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from sctune.backbones.trunk import BatchNorm
from sctune.data.batches import endless, stream
from sctune.errors import StoppedError
from sctune.methods.deviation.detector import Detector
from sctune.methods.deviation.images import pixels_of
from sctune.methods.deviation.step import TrainingStep
from sctune.methods.pixels import normalise, to_pixels


def refit_statistics(
    detector: Detector, step: TrainingStep, first: int, count: int, stopped: Callable[[], bool]
) -> None:
    """Estimate every running mean and variance that training updates from `count` batches, numbered from `first`.

    optim.final_statistics=batches: as training makes them; normals: training normals, not augmented. Frozen blocks,
    and a trunk with model.batch_norm=eval, keep theirs. Raises StoppedError where `stopped` says so.
    """
    # a copy sees them: the pseudo anomalies of the batches are made with the detector as it is
    seeing = copy.deepcopy(detector).train()
    norms = {
        name: module
        for name, module in seeing.named_modules()
        if isinstance(module, BatchNorm) and module.training and module.track_running_stats
    }
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
    for number in range(first, first + count):
        if stopped():
            raise StoppedError("stopped while batch norm was estimated anew")
        images, references = _seen(detector, step, number)
        offsets = seeing.draw_offsets(len(images), stream(step.config.seed, "statistics offsets", number))
        # not around the batch, for which SaliencyCut needs gradients
        with torch.no_grad():
            seeing(images, offsets, references)
    for name, norm in norms.items():
        own = detector.get_submodule(name)
        for held in ("running_mean", "running_var"):
            own.get_buffer(held).copy_(norm.get_buffer(held))


def _seen(detector: Detector, step: TrainingStep, number: int) -> tuple[Tensor, Tensor | None]:
    """Normalised images [B, 3, S, S] of a batch, and the references [R, 3, S, S] that go with it."""
    config = step.config
    if config.optim.final_statistics == "batches":
        return step.batch(number).images, step.reference_images(number)
    normals = step.images.normals
    rows = normals[endless(len(normals), config.budget.batch_size, number, config.seed, "statistics")]
    references = None
    if detector.needs_references:
        held = detector.references.cpu().numpy()
        references = normalise(to_pixels(held, step.device, config.runtime.channels_last))
    return normalise(pixels_of(step.images, rows, config, step.device)), references
