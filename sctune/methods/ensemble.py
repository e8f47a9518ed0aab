"""Several trained models of one configuration as one, by the mean of their scores.

After Lakshminarayanan, Pritzel and Blundell, "Simple and scalable predictive uncertainty estimation using deep
ensembles", NeurIPS 2017.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sctune.config import TrialConfig
from sctune.errors import CheckpointError
from sctune.methods.base import Fitted, Maps, Method, Scores

MEMBER = "member/"
"""Begins the names of an ensemble's tensors: member/NUMBER/NAME."""


class Ensemble(Fitted):
    """Scores by the mean of its members, trained on different seeds; 2 members at least, else ValueError.

    Their scores are added as they are. Those of the family `deviation` are in deviations of one and the same prior,
    those of a density in deviations of held-out normals, those of `mlep` and `saoe` in deviations of training normals,
    so that no member outweighs another. Errors of `ssm` and `kdad` and distances of `cutpaste` are in units that seeds
    share but no scale holds together: a member whose scores spread more weighs more.
    """

    def __init__(self, members: Sequence[Method]) -> None:
        if len(members) < 2:
            raise ValueError(f"an ensemble of {len(members)} models; 2 are needed at least")
        super().__init__(members[0].config, members[0].device)
        self.members = tuple(members)

    def score(self, images: np.ndarray) -> Scores:
        found: Scores = np.mean([member.score(images) for member in self.members], axis=0)
        return found

    def model_state(self) -> dict[str, Tensor]:
        return {
            f"{MEMBER}{number}/{name}": value
            for number, member in enumerate(self.members)
            for name, value in member.model_state().items()
        }

    def module(self) -> nn.Module:
        return MeanScore([member.module() for member in self.members]).eval()

    def cells(self, images: np.ndarray) -> Maps | None:
        return _mean_map([member.cells(images) for member in self.members])

    def gradients(self, images: np.ndarray) -> Maps | None:
        return _mean_map([member.gradients(images) for member in self.members])


class MeanScore(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> the mean of the scores [N] of several modules."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.stack([member(pixels) for member in self.members]).mean(0)


def is_ensemble(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the `model_state` of an ensemble."""
    return any(name.startswith(MEMBER) for name in tensors)


def ensemble_of(
    config: TrialConfig,
    device: torch.device,
    tensors: Mapping[str, Tensor],
    load: Callable[[TrialConfig, torch.device, Mapping[str, Tensor]], Method],
) -> Ensemble:
    """The ensemble that `tensors` are the `model_state` of; raises CheckpointError where they are none.

    load: makes a member from its tensors.
    """
    parts: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        match = re.fullmatch(rf"{MEMBER}(\d{{1,4}})/(.+)", name)
        if match is None:
            raise CheckpointError(f"the weights do not fit the model: {name!r} is of no member of the ensemble")
        parts.setdefault(int(match[1]), {})[match[2]] = value
    if sorted(parts) != list(range(len(parts))) or len(parts) < 2:
        raise CheckpointError(f"the weights do not fit the model: an ensemble of the members {sorted(parts)}")
    return Ensemble([load(config, device, parts[number]) for number in range(len(parts))])


def _mean_map(maps: Sequence[Maps | None]) -> Maps | None:
    known = [each for each in maps if each is not None]
    if len(known) < len(maps):
        return None
    found: Maps = np.mean(known, axis=0, dtype=np.float32)
    return found
