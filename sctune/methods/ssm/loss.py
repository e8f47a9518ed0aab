"""What training minimises: the reconstruction's error in three ways, and that of the masks (Huang et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sctune.methods.ssm.entry import SsmSection
from sctune.methods.ssm.masks import SETS
from sctune.methods.ssm.similarity import gms_loss, ssim_loss


def masking_losses(images: Tensor, made: Tensor, masks: Tensor, seen: Tensor) -> dict[str, Tensor]:
    """Parts of the loss by the name of their weight.

    images, made [N, 3, S, S]: as they are, and made anew; masks [N or 1, 3, 1, S, S] and seen [N, 3, 1, S, S]: the
    masks of the three passes, and what the network took them for.
    """
    return {
        "mse": functional.mse_loss(made, images),
        "gms": gms_loss(images, made),
        "ssim": ssim_loss(images, made),
        # a sum over the passes, each a mean over its pixels
        "mask": SETS * functional.mse_loss(seen, masks.expand_as(seen)),
    }


def weighted(losses: dict[str, Tensor], section: SsmSection) -> Tensor:
    """The sum of the parts by the weights of the configuration."""
    weights = {"mse": section.mse, "gms": section.gms, "ssim": section.ssim, "mask": section.mask}
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
