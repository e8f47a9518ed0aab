"""Where an image differs from what a trained network makes of it, and the score of that (Huang et al. 2022)."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from sctune.config import TrialConfig
from sctune.data.batches import stream
from sctune.methods.pixels import autocast
from sctune.methods.ssm.entry import SIDE, SsmSection, section_of, sides_of
from sctune.methods.ssm.masks import SETS, hide_sets, surely_normal
from sctune.methods.ssm.network import MaskedUNet, reconstruct
from sctune.methods.ssm.similarity import along_both, error_map, gradients

ROUND_SEEDS = (8, 9)
"""Of the masks of the first and the second round of scoring, the same for all images and models (public code)."""
PUBLISHED_THRESHOLD = 0.75 - 0.96 / (255 * sum((cell / SIDE) ** 2 for cell in (2, 4, 8)))
"""Error below which the public code takes a pixel for surely normal, 0.0157.

It compares 255 times the sum over the cells of (1/4 - GMS) / N^2 with -0.96, N being the cells a side; an error here is
the weighted mean of 1 - GMS.
"""


def cell_shares(sides: tuple[int, ...], weight: str) -> list[float]:
    """Share of the error map of each side of a cell: as the area of a cell, or equal; they sum to 1."""
    weights = [side**2 if weight == "cell" else 1 for side in sides]
    return [value / sum(weights) for value in weights]


class ErrorScore(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> scores [N] in [0, 1]: the highest value of the smoothed error map.

    The error of a pixel is the mean over four scales of 1 - GMS between the image and its reconstruction, and over the
    K sides of the cells that were hidden. S is data.image_size; the network sees 128 px. unet: None for one that has
    learned nothing. threshold: error below which a second round takes a pixel for surely normal; no number before it
    was set.
    """

    shrink: Tensor
    blur: Tensor
    shares: Tensor
    threshold: Tensor

    def __init__(self, config: TrialConfig, unet: MaskedUNet | None = None) -> None:
        super().__init__()
        self.section: SsmSection = section_of(config)
        self.runtime = config.runtime
        self.sides = sides_of(self.section.score_cells)
        self.unet = MaskedUNet(self.section.width) if unet is None else unet
        known = self.section.refine_quantile == "published"
        self.register_buffer("threshold", torch.tensor(PUBLISHED_THRESHOLD if known else torch.nan))
        self.register_buffer("shares", torch.tensor(cell_shares(self.sides, self.section.weight)), persistent=False)
        self.register_buffer("shrink", shrinking(config.data.image_size), persistent=False)
        self.register_buffer("blur", blurring(self.section.sigma), persistent=False)
        for number in range(2 if self.section.refine else 1):
            self.register_buffer(f"masks_{number}", scoring_masks(number, self.sides), persistent=False)

    @property
    def has_learned(self) -> bool:
        """Whether an update was made: batch norm counts them."""
        return any(bool(count) for name, count in self.unet.named_buffers() if name.endswith("num_batches_tracked"))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.error_maps(pixels).flatten(1).amax(1)

    def error_maps(self, pixels: Tensor) -> Tensor:
        """Smoothed error maps [N, 128, 128] in [0, 1], of the last round."""
        images = self.shrunk(pixels)
        first = self.first_round(images)
        if not self.section.refine:
            return first
        visible = surely_normal(first, self.threshold)
        return self.combined(self.errors(images, self.get_buffer("masks_1"), visible))

    def first_round(self, images: Tensor) -> Tensor:
        """Smoothed error maps [N, 128, 128] of images [N, 3, 128, 128], all of which is hidden once."""
        return self.combined(self.errors(images, self.get_buffer("masks_0")))

    def shrunk(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, S, S] at the side that the network sees."""
        return along_both(self.shrink, pixels).to(pixels.dtype)

    def errors(self, images: Tensor, masks: Tensor, visible: Tensor | None = None) -> Tensor:
        """Errors [N, K, 128, 128] of images [N, 3, 128, 128] by each of K times three masks; as `reconstructed`."""
        made = self.reconstructed(images, masks, visible)
        pairs = torch.stack([images[:, None].expand_as(made), made]).flatten(0, 2)
        levels = [level.unflatten(0, (2, -1)) for level in gradients(pairs)]
        found = error_map([level[0] for level in levels], [level[1] for level in levels])
        return found.unflatten(0, (-1, made.shape[1]))

    def reconstructed(self, images: Tensor, masks: Tensor, visible: Tensor | None = None) -> Tensor:
        """Images [N, 3, 128, 128] made anew from each of K times three masks [3K, 1, 128, 128]: [N, K, 3, 128, 128].

        visible: what none of the masks hides [N, 1, 128, 128].
        """
        held = masks.unflatten(0, (-1, SETS)).expand(images.shape[0], -1, -1, -1, -1, -1)
        if visible is not None:
            held = torch.maximum(held, visible[:, None, None])
        sides = held.shape[1]
        with autocast(self.runtime, images.device):
            repeated = images[:, None].expand(-1, sides, -1, -1, -1).flatten(0, 1)
            made, _ = reconstruct(self.unet, repeated, held.flatten(0, 1))
        return made.float().unflatten(0, (-1, sides))

    def combined(self, errors: Tensor) -> Tensor:
        """The smoothed weighted mean [N, 128, 128] of errors [N, K, 128, 128] over the sides of the cells."""
        return along_both(self.blur, (errors * self.shares[:, None, None]).sum(1)).to(errors.dtype)


def scoring_masks(number: int, sides: tuple[int, ...]) -> Tensor:
    """Three masks for each of K sides of cells in round `number`, 0 or 1: [3K, 1, 128, 128]."""
    seed = ROUND_SEEDS[number]
    return torch.cat([hide_sets(SIDE, side, stream(seed, "hidden cells", side)) for side in sides])


def shrinking(size: int) -> Tensor:
    """[128, size] doubles that bring one axis to the network's side: torch's antialiased bilinear resizing."""
    axis = torch.eye(size, dtype=torch.float64)[None, None]
    return functional.interpolate(axis, size=(SIDE, size), mode="bilinear", antialias=True)[0, 0]


def blurring(sigma: float) -> Tensor:
    """[128, 128] doubles that smooth one axis by a Gaussian, the border mirrored."""
    return torch.from_numpy(ndimage.gaussian_filter1d(np.eye(SIDE), sigma, axis=0))


def images_at_once(most: int, sides: int) -> int:
    """Images of one pass, where each is hidden by `sides` sides of cells: a share of `most` that divides it."""
    return next(count for count in range(max(1, most // sides), 0, -1) if most % count == 0)
