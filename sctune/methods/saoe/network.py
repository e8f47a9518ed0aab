"""The members of SAOE as one network, and its score."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sctune.backbones.trunk import Backbone
from sctune.config import RuntimeConfig
from sctune.methods.network import frozen_maps, trunk_maps


class Member(nn.Module):
    """A backbone and one logit of its pooled map: pixels [N, 3, S, S] in [0, 1] -> logits [N]."""

    def __init__(self, backbone: Backbone, runtime: RuntimeConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.runtime = runtime
        self.logit = nn.Linear(backbone.channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.of_maps(trunk_maps(self.backbone, pixels, self.runtime))

    def of_maps(self, maps: Tensor) -> Tensor:
        """Logits [N] of the backbone's maps [N, C, s, s]."""
        logits: Tensor = self.logit(maps.mean(dim=(2, 3)))
        return logits[:, 0]

    def cells(self, maps: Tensor) -> Tensor:
        """The logit of each cell [N, s, s]; pooling is linear, so the mean over the cells is the image's."""
        weight, bias = self.logit.weight[0], self.logit.bias
        return (maps * weight[:, None, None]).sum(dim=1) + bias


class SaoeNetwork(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> scores [N]: the mean over members of their logits in standard deviations.

    names: of the members, all of which begin with the same backbone. moments [2, M]: mean and standard deviation of
    their logits on normal images, 0 and 1 before the first epoch has ended. scored: the one that scores alone.
    """

    moments: Tensor

    def __init__(self, names: Sequence[str], backbone: Backbone, runtime: RuntimeConfig, scored: str | None) -> None:
        super().__init__()
        self.members = nn.ModuleDict({name: Member(copy.deepcopy(backbone), runtime) for name in names})
        self.scored = scored
        self.register_buffer("moments", _unscaled(len(names)))

    @property
    def names(self) -> list[str]:
        return list(self.members)

    def member(self, name: str) -> Member:
        found = self.members[name]
        assert isinstance(found, Member)
        return found

    def leave_out(self, name: str) -> None:
        """An ensemble without this member; its scale is that of one that has learned nothing."""
        del self.members[name]
        self.moments = _unscaled(len(self.members)).to(self.moments.device)

    def take_in(self, name: str) -> None:
        """An ensemble with this member besides, the last one; a copy of the first, whose weights are to be loaded."""
        self.members[name] = copy.deepcopy(self.member(self.names[0]))
        self.moments = _unscaled(len(self.members)).to(self.moments.device)

    def frozen(self, pixels: Tensor) -> Tensor | None:
        """What `maps` can go on from; None where no block is frozen."""
        first = self.member(self.names[0])
        return frozen_maps(first.backbone, pixels, first.runtime)

    def maps(self, pixels: Tensor, frozen: Tensor | None = None) -> list[Tensor]:
        """Map [N, C, s, s] of each member's backbone. Frozen blocks are the same in all, so they are run once."""
        members = [self.member(name) for name in self.names]
        frozen = self.frozen(pixels) if frozen is None else frozen
        return [trunk_maps(member.backbone, pixels, member.runtime, frozen) for member in members]

    def logits(self, pixels: Tensor, frozen: Tensor | None = None) -> Tensor:
        """[N, M]."""
        both = zip(self.names, self.maps(pixels, frozen), strict=True)
        return torch.stack([self.member(name).of_maps(maps) for name, maps in both], dim=1)

    def scaled(self, logits: Tensor) -> Tensor:
        """Logits [N, M] in standard deviations of normal images."""
        return (logits - self.moments[0]) / self.moments[1]

    def combined(self, logits: Tensor, scored: str | None) -> Tensor:
        """Scores [N] of logits [N, M]: the mean of all members, or those of one; 0 for one that was left out."""
        scaled = self.scaled(logits)
        if scored is None:
            return scaled.mean(dim=1)
        return scaled[:, self.names.index(scored)] if scored in self.names else torch.zeros_like(scaled[:, 0])

    def forward(self, pixels: Tensor) -> Tensor:
        return self.combined(self.logits(pixels), self.scored)

    def cells(self, pixels: Tensor) -> Tensor:
        """What each pixel adds to the score [N, S, S].

        The score is the mean of a map where each cell has a whole number of pixels; else what the borders of
        `interpolate` add comes besides.
        """
        parts = [self.member(name).cells(maps) for name, maps in zip(self.names, self.maps(pixels), strict=True)]
        size = pixels.shape[-2:]
        cells = torch.stack(parts, dim=1)
        scaled = (cells - self.moments[0][:, None, None]) / self.moments[1][:, None, None]
        chosen = scaled.mean(dim=1, keepdim=True)
        if self.scored is not None:
            place = self.names.index(self.scored) if self.scored in self.names else None
            chosen = torch.zeros_like(chosen) if place is None else scaled[:, place : place + 1]
        return nn.functional.interpolate(chosen, size=size, mode="bilinear", align_corners=False)[:, 0]


def _unscaled(members: int) -> Tensor:
    return torch.stack([torch.zeros(members), torch.ones(members)])
