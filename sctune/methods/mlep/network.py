"""Encoder, decoder and score of MLEP's image form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sctune.backbones.registry import feature_side, tap_list
from sctune.backbones.trunk import Backbone
from sctune.config import TrialConfig
from sctune.methods.mlep.entry import MlepSection
from sctune.methods.mlep.loss import unit_rms
from sctune.methods.network import frozen_maps, trunk_maps

LEAST_WIDTH = 16
LEAST_DEVIATION = 1e-3
"""Of a part on normal images: a share of the range of a pixel, or of the mean square of z. What rounding does to a part
(about 1e-7) must not show in a score."""

MEAN, TOP, DISTANCE = 0, 1, 2
"""Places of the parts of a score: mean error, that of the highest pixels, distance to the mean normal z."""


class Decoder(nn.Module):
    """z [N, C, s, s] -> pictures [N, 3, S, S] in [0, 1].

    Each stage: bilinear to the next of the sides S / 2^k, 3x3 convolution to half as many channels (`width` for the
    first, 16 at least), batch norm, ReLU; at the end a 1x1 convolution and a sigmoid, which is the published tanh for
    pixels that begin at 0.
    """

    def __init__(self, channels: int, stages: int, size: int, width: int) -> None:
        super().__init__()
        self.sides = [max(1, size >> left) for left in reversed(range(stages))]
        self.stages = nn.ModuleList()
        for stage in range(stages):
            wide = max(LEAST_WIDTH, width >> stage)
            convolution = nn.Conv2d(channels, wide, 3, padding=1, bias=False)
            self.stages.append(nn.Sequential(convolution, nn.BatchNorm2d(wide), nn.ReLU()))
            channels = wide
        self.colours = nn.Conv2d(channels, 3, 1)

    def forward(self, maps: Tensor) -> Tensor:
        for side, stage in zip(self.sides, self.stages, strict=True):
            maps = nn.functional.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)
            maps = stage(maps)
        colours: Tensor = self.colours(maps)
        return colours.sigmoid()


class MlepNetwork(nn.Module):
    """Pixels [N, 3, S, S] in [0, 1] -> scores [N].

    typical [C, s, s]: the mean z of normal images; moments [2, 3]: mean and standard deviation of the parts on them,
    0 and 1 before the first epoch has ended.
    """

    typical: Tensor
    moments: Tensor

    def __init__(self, config: TrialConfig, backbone: Backbone) -> None:
        super().__init__()
        assert isinstance(config.method, MlepSection)
        self.section = config.method
        self.runtime = config.runtime
        size = config.data.image_size
        name, names = config.model.backbone, config.model.tap_names
        # several maps stand on the grid of the largest one
        stride, side = min(tap.stride for tap in tap_list(name, names)), feature_side(size, name, names)
        width = self.section.decoder_width or max(LEAST_WIDTH, backbone.channels // 2)
        self.backbone = backbone
        self.decoder = Decoder(backbone.channels, max(1, (stride - 1).bit_length()), size, width)
        self.highest = max(1, int(self.section.error_share * size * size + 1e-9))
        self.register_buffer("typical", torch.zeros(backbone.channels, side, side))
        self.register_buffer("moments", torch.tensor([[0.0] * 3, [1.0] * 3]))

    def frozen(self, pixels: Tensor) -> Tensor | None:
        """What `embed` can go on from; None where no block is frozen."""
        return frozen_maps(self.backbone, pixels, self.runtime)

    def embed(self, pixels: Tensor, frozen: Tensor | None = None) -> Tensor:
        """z [N, C, s, s]: the backbone's map, of unit root mean square for each image."""
        return unit_rms(trunk_maps(self.backbone, pixels, self.runtime, frozen))

    def errors(self, pixels: Tensor, z: Tensor) -> Tensor:
        """Mean over the colours of |pixel - picture| [N, S, S]."""
        return (pixels - self.decoder(z)).abs().mean(dim=1)

    def parts(self, pixels: Tensor, frozen: Tensor | None = None) -> Tensor:
        """Mean error, mean of the highest errors, distance [N, 3], as they are measured."""
        z = self.embed(pixels, frozen)
        errors = self.errors(pixels, z).flatten(1)
        highest = errors.topk(self.highest, dim=1).values
        distance = (z - self.typical).square().mean(dim=(1, 2, 3))
        return torch.stack([errors.mean(dim=1), highest.mean(dim=1), distance], dim=1)

    def scaled(self, parts: Tensor) -> Tensor:
        """Parts [N, 3] in standard deviations of normal images."""
        return (parts - self.moments[0]) / self.moments[1]

    def combined(self, parts: Tensor, section: MlepSection | None = None) -> Tensor:
        """Scores [N] of parts [N, 3], weighed as a section says (none: its own)."""
        section = section or self.section
        scaled = self.scaled(parts)
        return scaled[:, self.error_of(section)] + section.distance * scaled[:, DISTANCE]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.combined(self.parts(pixels))

    def cells(self, pixels: Tensor) -> Tensor:
        """What each pixel adds to the score [N, S, S].

        With the mean error the score is the mean of a map; with the distance besides only up to what the borders of
        `interpolate` add, unless each cell of z has a whole number of pixels.
        """
        z = self.embed(pixels)
        chosen, (mean, deviation) = self.error_of(self.section), self.moments
        maps = (self.errors(pixels, z) - mean[chosen]) / deviation[chosen]
        if self.section.distance == 0:
            return maps
        away = (z - self.typical).square().mean(dim=1, keepdim=True)
        raised = nn.functional.interpolate(away, size=maps.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        return maps + self.section.distance * (raised - mean[DISTANCE]) / deviation[DISTANCE]

    @staticmethod
    def error_of(section: MlepSection) -> int:
        return TOP if section.error == "top" else MEAN
