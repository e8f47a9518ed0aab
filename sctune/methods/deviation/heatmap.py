"""Where in an image the anomaly is, as a detector sees it: both functions leave it in the mode that it is in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sctune.augment.saliency import smooth_map
from sctune.methods.deviation.detector import Detector, for_views, over_turns
from sctune.methods.deviation.geometry import patch_offsets, patch_side
from sctune.methods.deviation.heads import LatentResidualHead, PatchResidualHead, PlainHead
from sctune.methods.deviation.patches import scoring_signs
from sctune.methods.deviation.roles import NORMAL_HEAD
from sctune.methods.gradient import GRID


def gradient_maps(detector: Detector, images: Tensor) -> Tensor:
    """The smoothed gradient of the anomaly score by normalised pixels [N, 3, S, S] (paper section 3.2): [N, S, S]."""
    weights = [weight for weight in detector.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        with torch.enable_grad():
            inputs = images.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(detector.anomaly_score(inputs).sum(), inputs)
    finally:
        for weight in weights:
            weight.requires_grad_(True)
    return smooth_map(gradient, min(GRID, images.shape[-1] // 2))[:, 0]


def cell_maps(detector: Detector, images: Tensor) -> Tensor:
    """Scores of the anomaly heads' cells of normalised images [N, 3, S, S], put back where they lie: [N, S, S].

    Where images are scored in several turns, the mean of their maps, each turned back.
    """
    size, turns = images.shape[-1], detector.config.score.turns
    total = images.new_zeros(turns * len(images), 1, size, size)
    with torch.inference_mode():
        features = detector.features(detector.views(images))
        references = for_views(detector.turned_references(), features)
        for scale, level in enumerate(features):
            reference = None if references is None else references[scale]
            for name in detector.roles:
                if name != NORMAL_HEAD:
                    cells = head_cells(detector.head(name), level, reference)
                    total += nn.functional.interpolate(
                        cells[:, None], size=(size, size), mode="bilinear", align_corners=False
                    )
        back = [part.rot90(-turn, (1, 2)) for turn, part in enumerate(total[:, 0].chunk(turns))]
        return over_turns(torch.cat(back), turns)


def head_cells(head: nn.Module, features: Tensor, reference: Tensor | None = None) -> Tensor:
    """Score of each cell [N, S, S] of a feature map [N, C, S, S] by an anomaly head.

    A patch head scores residuals of several patches: a cell gets the mean over all that it takes part in.
    """
    if isinstance(head, PlainHead):
        return head.scoring(features).abs()[:, 0]
    if isinstance(head, LatentResidualHead):
        if reference is None:
            raise ValueError("a latent residual head needs the reference's map")
        return head.scoring(head.conv(reference - features)).abs()[:, 0]
    if isinstance(head, PatchResidualHead):
        return _patch_cells(head, features)
    raise TypeError(f"{type(head).__name__} has no cells")


def _patch_cells(head: PatchResidualHead, features: Tensor) -> Tensor:
    side = features.shape[-1]
    patch = patch_side(side, head.patch_count, head.patch_size)
    places = patch_offsets(side, patch, head.place)
    mode = "fixed" if head.evaluation == "random" else head.evaluation
    total, count = features.new_zeros(len(features), side, side), features.new_zeros(side, side)
    for row in scoring_signs(side, patch, head.place, head.patch_count, mode):
        used = [(place, sign) for place, sign in zip(places, row.tolist(), strict=True) if sign]
        residual = torch.stack([sign * features[:, :, r : r + patch, c : c + patch] for (r, c), sign in used]).sum(0)
        cells = head.scoring(head.conv(residual)).abs()[:, 0]
        for (r, c), _ in used:
            total[:, r : r + patch, c : c + patch] += cells
            count[r : r + patch, c : c + patch] += 1
    return total / count.clamp_min(1)
