"""How the cloner learns: batches of normal images, the loss of all critical layers, Adam (public code)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sctune.config import TrialConfig
from sctune.data.batches import endless, stream
from sctune.data.transfer import to_device
from sctune.errors import DataError
from sctune.methods.base import TaskImages
from sctune.methods.kdad.entry import kdad_section
from sctune.methods.kdad.kept import KeptMaps
from sctune.methods.kdad.pair import Pair
from sctune.methods.length import Length
from sctune.methods.pixels import autocast, to_pixels

SCALE_IMAGES = 256
"""Most normal images, drawn by the seed, whose maps give the size of the value parts."""
AT_ONCE = 16
"""Of them between two questions whether to stop."""
LEAST_NORMALS = 2


class Training:
    """Runs step number 0, 1, ... of a training; the number alone decides which images it sees.

    optimiser: of the cloner's weights; length: how many steps it has. Raises DataError for fewer than two normal
    images.
    """

    def __init__(self, config: TrialConfig, pair: Pair, images: TaskImages, kept: KeptMaps) -> None:
        if len(images.normals) < LEAST_NORMALS:
            raise DataError(
                f"method kdad needs {LEAST_NORMALS} normal training images at least, and {len(images.normals)} are "
                "there; add images"
            )
        self.config = config
        self.pair = pair
        self.images = images
        self.kept = kept
        self.device = next(pair.parameters()).device
        section = kdad_section(config)
        self.length = Length(config, section.total_updates, -(-len(images.normals) // config.budget.batch_size))
        self.optimiser = torch.optim.Adam(pair.cloner.parameters(), lr=section.cloner_lr)
        self.copies: Callable[[Tensor], list[Tensor]] = (
            torch.compile(pair.copies) if config.runtime.compile else pair.copies
        )

    def batches(self, epoch: int) -> Iterator[NDArray[np.intp]]:
        """The places of the normals (0 for the first one) that each step of an epoch sees."""
        count, size, seed = len(self.images.normals), self.config.budget.batch_size, self.config.seed
        if kdad_section(self.config).total_updates == "pass":
            order = endless(count, count, epoch, seed, "normal")
            yield from (order[start : start + size] for start in range(0, count, size))
            return
        for step in range(self.length.before(epoch), self.length.before(epoch + 1)):
            yield endless(count, size, step, seed, "normal")

    @property
    def measured(self) -> int:
        """How many normal images `measure` looks at."""
        return min(len(self.images.normals), SCALE_IMAGES)

    def measure(self, ask: Callable[[], None]) -> None:
        """Set the scale of each layer: the mean square of the source's maps of normal images."""
        count = len(self.images.normals)
        some = torch.randperm(count, generator=stream(self.config.seed, "scale"))[: self.measured].numpy()
        totals = np.zeros(len(self.pair.shapes))
        for start in range(0, len(some), AT_ONCE):
            ask()
            for number, one in enumerate(self.pair.unrolled(self.kept.of(some[start : start + AT_ONCE]))):
                totals[number] += float(one.double().square().mean(dim=(1, 2, 3)).sum())
        means = totals / len(some)
        # a layer that gives nothing but zeros has nothing to be relative to
        self.pair.scale.copy_(torch.from_numpy(np.where(means > 0, means, 1.0)))

    def run(self, places: NDArray[np.intp]) -> dict[str, Tensor]:
        """One update; loss and its parts as scalar tensors. The cloner must be in training mode."""
        maps = self.pair.unrolled(to_device(self.kept.of(places), self.device).float())
        runtime = self.config.runtime
        pixels = to_pixels(self.images.take(self.images.normals[places]), self.device, runtime.channels_last)
        with autocast(runtime, self.device):
            copies = self.copies(pixels)
        direction, value = self.pair.differences(maps, copies).mean(dim=0).sum(dim=0)
        loss = direction + kdad_section(self.config).value_weight * value
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return {"loss": loss.detach(), "loss_direction": direction.detach(), "loss_value": value.detach()}
