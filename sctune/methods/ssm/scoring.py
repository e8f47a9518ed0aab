"""Where an image differs from what a trained network makes of it, and the score of that (Huang et al. 2022)."""

from __future__ import annotations

import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from sctune.config import TrialConfig
from sctune.data.batches import stream
from sctune.methods.pixels import autocast
from sctune.methods.ssm.entry import SIDE, SsmSection, section_of, sides_of
from sctune.methods.ssm.masks import hide_sets, surely_normal
from sctune.methods.ssm.network import MaskedUNet, reconstruct
from sctune.methods.ssm.similarity import error_map, gradients

ROUND_SEEDS = (8, 9)
"""Of the masks of the first and the second round of scoring, the same for all images and models (public code)."""
PUBLISHED_THRESHOLD = 0.75 - 0.96 / (255 * sum((cell / SIDE) ** 2 for cell in (2, 4, 8)))
"""Error below which the public code takes a pixel for surely normal, 0.0157.

It compares 255 times the sum over the cells of (1/4 - GMS) / N^2 with -0.96, N being the cells a side; an error here is
the weighted mean of 1 - GMS.
"""


def cell_shares(sides: tuple[int, ...], weight: str) -> dict[int, float]:
    """Share of the error map of each side of a cell: as the area of a cell, or equal; they sum to 1."""
    weights = {side: side**2 if weight == "cell" else 1 for side in sides}
    return {side: value / sum(weights.values()) for side, value in weights.items()}


class ErrorScore(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> scores [N] in [0, 1]: the highest value of the smoothed error map.

    The error of a pixel is the mean over four scales of 1 - GMS between the image and its reconstruction, and over the
    sides of the cells that were hidden. S is data.image_size; the network sees 128 px. threshold: error below which a
    second round takes a pixel for surely normal; no number before it was set.
    """

    shrink: Tensor
    blur: Tensor
    threshold: Tensor

    def __init__(self, config: TrialConfig, unet: MaskedUNet | None = None) -> None:
        super().__init__()
        self.section: SsmSection = section_of(config)
        self.runtime = config.runtime
        self.sides = sides_of(self.section.score_cells)
        self.shares = cell_shares(self.sides, self.section.weight)
        self.unet = MaskedUNet(self.section.width) if unet is None else unet
        known = self.section.refine_quantile == "published"
        self.register_buffer("threshold", torch.tensor(PUBLISHED_THRESHOLD if known else torch.nan))
        self.register_buffer("shrink", shrinking(config.data.image_size), persistent=False)
        self.register_buffer("blur", blurring(self.section.sigma), persistent=False)
        for number in range(2 if self.section.refine else 1):
            for side in self.sides:
                self.register_buffer(f"masks_{number}_{side}", scoring_masks(number, side), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.error_maps(pixels).flatten(1).amax(1)

    def error_maps(self, pixels: Tensor) -> Tensor:
        """Smoothed error maps [N, 128, 128] in [0, 1], of the last round."""
        images = self.shrunk(pixels)
        levels = gradients(images)
        first = self.first_round(images, levels)
        if not self.section.refine:
            return first
        visible = surely_normal(first, self.threshold)
        return self.combined({side: self.side_errors(images, levels, side, 1, visible) for side in self.sides})

    def first_round(self, images: Tensor, levels: list[Tensor]) -> Tensor:
        """Smoothed error maps [N, 128, 128] of images [N, 3, 128, 128], all of which is hidden once.

        levels: their gradients.
        """
        return self.combined({side: self.side_errors(images, levels, side) for side in self.sides})

    def shrunk(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, S, S] at the side that the network sees."""
        return self.shrink @ pixels @ self.shrink.mT

    def side_errors(
        self, images: Tensor, levels: list[Tensor], side: int, number: int = 0, visible: Tensor | None = None
    ) -> Tensor:
        """Errors [N, 128, 128] where cells of one side are hidden in round `number`, 0 or 1.

        levels: gradients of the images; visible: what no pass hides [N, 1, 128, 128].
        """
        return error_map(levels, gradients(self.reconstructed(images, side, number, visible)))

    def reconstructed(self, images: Tensor, side: int, number: int = 0, visible: Tensor | None = None) -> Tensor:
        """Images [N, 3, 128, 128] made anew from masks that hide cells of one side; arguments of `side_errors`."""
        held: Tensor | None = getattr(self, f"masks_{number}_{side}", None)
        masks = (scoring_masks(number, side).to(images) if held is None else held)[None]
        if visible is not None:
            masks = torch.maximum(masks, visible[:, None])
        with autocast(self.runtime, images.device):
            made, _ = reconstruct(self.unet, images, masks)
        return made.float()

    def combined(self, errors: dict[int, Tensor]) -> Tensor:
        """The smoothed weighted mean [N, 128, 128] of errors by the side of their cells."""
        parts = [share * errors[side] for side, share in self.shares.items()]
        return self.blur @ torch.stack(parts).sum(0) @ self.blur.mT


def scoring_masks(number: int, side: int) -> Tensor:
    """The masks [3, 1, 128, 128] of cells of one side in round `number`, 0 or 1."""
    return hide_sets(SIDE, side, stream(ROUND_SEEDS[number], "hidden cells", side))


def shrinking(size: int) -> Tensor:
    """[128, size] matrix that brings one axis to the network's side: torch's antialiased bilinear resizing."""
    axis = torch.eye(size)[None, None]
    return functional.interpolate(axis, size=(SIDE, size), mode="bilinear", antialias=True)[0, 0]


def blurring(sigma: float) -> Tensor:
    """[128, 128] matrix that smooths one axis by a Gaussian, the border mirrored."""
    return torch.from_numpy(ndimage.gaussian_filter1d(torch.eye(SIDE).double().numpy(), sigma, axis=0)).float()
