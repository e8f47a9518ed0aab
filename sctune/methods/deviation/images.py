"""The training images of a detector as they reach the device: decoded, augmented, normalised; and its references.

References are the normal images that a latent residual is taken from (METHODS 3.1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sctune.augment.changes import changed
from sctune.augment.makers import PIXEL_MAKERS
from sctune.config import TrialConfig
from sctune.data.batches import PSEUDO_SHARE, stream
from sctune.data.transfer import to_device
from sctune.methods.base import TaskImages
from sctune.methods.pixels import normalise, to_images, to_pixels


def pixels_of(images: TaskImages, rows: np.ndarray, config: TrialConfig, device: torch.device) -> Tensor:
    """The images of these rows [N, 3, S, S] in [0, 1], as they were decoded."""
    return to_pixels(images.take(rows), device, config.runtime.channels_last)


def augmented(pixels: Tensor, config: TrialConfig, *purpose: object) -> tuple[Tensor, Tensor]:
    """Each image turned, mirrored, moved and recoloured by draws of its own, as `config.augment` asks.

    Gives normalised images [N, 3, S, S], and where they are real [N, 1, S, S]. purpose: keys the draws.
    """
    images, valid = changed(pixels, config.augment, config.seed, *purpose)
    return normalise(images), valid


class References:
    """Draws `model.reference_count` reference images: anew for each step, and for scoring.

    With `reference_source=normals` they are clean and, for scoring, always the same and not augmented. With `training`
    they are as DRA's public code has them: about half are pseudo anomalies (of the makers that work on pixels), and
    those for scoring are drawn and augmented anew each time.
    """

    def __init__(self, config: TrialConfig, images: TaskImages, device: torch.device) -> None:
        self.config = config
        self.images = images
        self.device = device

    def for_step(self, number: int) -> Tensor:
        """Normalised, augmented references [R, 3, S, S] of a training step."""
        return augmented(self._drawn("references", number), self.config, "reference rotation", number)[0]

    def for_scoring(self, epoch: int) -> np.ndarray:
        """uint8 references [R, S, S, 3] to score with after an epoch."""
        config = self.config
        if config.model.reference_source == "normals":
            return self.images.take(self._rows("scoring references"))
        drawn = self._drawn("scoring references", epoch)
        pixels, _ = changed(drawn, config.augment, config.seed, "scoring angles", epoch)
        return to_images(pixels).cpu().numpy()

    def _drawn(self, *purpose: object) -> Tensor:
        config = self.config
        pixels = pixels_of(self.images, self._rows(*purpose), config, self.device)
        maker = PIXEL_MAKERS.get(config.augment.kind)
        if config.model.reference_source == "normals" or maker is None:
            return pixels
        generator = stream(config.seed, "altered", *purpose)
        altered = torch.rand(len(pixels), generator=generator) < PSEUDO_SHARE
        cut = maker(pixels, pixels.roll(1, dims=0), config.augment, generator)
        return torch.where(to_device(altered, self.device)[:, None, None, None], cut.images, pixels)

    def _rows(self, *purpose: object) -> np.ndarray:
        """Rows of training normals, all different where there are enough."""
        normals, count = self.images.normals, self.config.model.reference_count
        order = torch.randperm(len(normals), generator=stream(self.config.seed, "reference rows", *purpose)).numpy()
        return normals[np.resize(order, count)]
