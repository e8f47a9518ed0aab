"""Deviation loss (paper eqs. 1 and 2): normal scores near the prior's mean, anomalous ones a margin above it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PRIOR_DRAWS = 5000
"""Reference scores drawn from N(0, 1) per call where the prior is sampled (public code)."""


def deviation(
    score: Tensor, prior: Literal["exact", "sampled"] = "exact", generator: torch.Generator | None = None
) -> Tensor:
    """Deviation of scores [N] from the Gaussian prior, in its standard deviations (paper eq. 1).

    exact: mean 0 and standard deviation 1; sampled: mean and unbiased standard deviation of 5000 draws
    from `generator` (a CPU generator; the default one when None).
    """
    if prior == "exact":
        return score
    draws = torch.randn(PRIOR_DRAWS, generator=generator)
    return (score - float(draws.mean())) / float(draws.std())


def deviation_losses(
    score: Tensor,
    target: Tensor,
    margin: float = 5.0,
    prior: Literal["exact", "sampled"] = "exact",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Loss per sample [N]: |dev| where target is 0, max(0, margin - dev) where it is 1 (paper eq. 2)."""
    dev = deviation(score, prior, generator)
    return torch.where(target > 0.5, (margin - dev).clamp_min(0), dev.abs())


def deviation_loss(
    score: Tensor,
    target: Tensor,
    margin: float = 5.0,
    prior: Literal["exact", "sampled"] = "exact",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean deviation loss of scores [N] against targets [N] in {0, 1}; a scalar."""
    return deviation_losses(score, target, margin, prior, generator).mean()
