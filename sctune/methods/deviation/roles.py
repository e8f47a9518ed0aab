"""What each head is for: the slots that it learns from, its targets, and its part in the anomaly score.

Slots are labelled 0 normal, 1 seen anomaly, 2 pseudo anomaly (METHODS 1.1, 3.1, 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sctune.config import LossConfig, TrialConfig
from sctune.methods.deviation.loss import deviation_losses

ALL = (0, 1, 2)

NORMAL_HEAD = "normal"


@dataclass(frozen=True)
class Role:
    """labels: of the slots that its loss looks at; positive: labels with target 1; sign: in the anomaly score."""

    labels: tuple[int, ...]
    positive: tuple[int, ...]
    sign: int = 1

    def targets(self, labels: Tensor) -> Tensor:
        """Target [N] in {0, 1} of every slot, also of those that its loss leaves out."""
        return _among(labels, self.positive).float()


NORMAL = Role(ALL, (0,), -1)
ANOMALOUS = Role(ALL, (1, 2))

HEADS: dict[str, dict[str, Role]] = {
    "two_head_patch": {NORMAL_HEAD: NORMAL, "anomaly": ANOMALOUS},
    "two_head_latent": {NORMAL_HEAD: NORMAL, "anomaly": ANOMALOUS},
    "four_head": {NORMAL_HEAD: NORMAL, "seen": Role((0, 1), (1,)), "pseudo": Role((0, 2), (2,)), "latent": ANOMALOUS},
    "single_head": {"anomaly": ANOMALOUS},
}
"""model.heads -> head name -> role."""


def head_roles(config: TrialConfig) -> dict[str, Role]:
    """The heads of a configuration that can learn: one whose anomalies never occur would only add noise."""
    occurring = {0} | ({1} if config.n_anomalies != 0 else set()) | ({2} if config.augment.kind != "none" else set())
    return {name: role for name, role in HEADS[config.model.heads].items() if occurring & set(role.positive)}


def combine(
    scores: Mapping[str, Tensor], roles: Mapping[str, Role], weights: Mapping[str, float] | None = None
) -> Tensor:
    """Anomaly score [N]: the heads' scores, the normal head's subtracted (METHODS 1.1, 3.1).

    weights: of heads that do not count once.
    """
    held = weights or {}
    return torch.stack([role.sign * held.get(name, 1.0) * scores[name] for name, role in roles.items()]).sum(dim=0)


def head_losses(
    scores: Mapping[str, Tensor],
    labels: Tensor,
    roles: Mapping[str, Role],
    config: LossConfig,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Mean deviation loss of every head over its own slots; scores: head -> [N], labels [N].

    A head with slots of its own learns nothing from a batch without its anomalies: its loss is 0 there, never NaN.
    """
    losses = {}
    for name, role in roles.items():
        each = deviation_losses(scores[name], role.targets(labels), config.margin, config.prior, generator)
        if role.labels == ALL:
            losses[name] = each.mean()
            continue
        # weights instead of an index: no wait for the GPU to count the slots
        mine = _among(labels, role.labels) & _among(labels, role.positive).any()
        losses[name] = torch.where(mine, each, 0).sum() / mine.sum().clamp_min(1)
    return losses


def _among(labels: Tensor, wanted: tuple[int, ...]) -> Tensor:
    return torch.isin(labels, labels.new_tensor(wanted))
