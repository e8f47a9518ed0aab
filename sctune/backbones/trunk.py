"""A backbone as a module: blocks in order, the leading ones frozen, one or several maps taken out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn

from sctune.backbones.entry import IMAGENET_MEAN, IMAGENET_STD, Colour
from sctune.backbones.foldings import Foldings
from sctune.backbones.grid import on_one_grid
from sctune.backbones.registry import backbone_entry, tap_list
from sctune.backbones.weights import read_state

IMAGENET_COLOURS = (IMAGENET_MEAN, IMAGENET_STD)

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
"""What all of them are made from is private to torch."""


class BackboneChoice(Protocol):
    """What a configuration says of its backbone (`sctune.config.ModelConfig`). tap_names: the maps to take.

    batch_norm, batch_norm_momentum: as of `Backbone`; without effect where a network has no batch norm, so that a
    space may vary the backbone.
    """

    @property
    def backbone(self) -> str: ...

    @property
    def tap_names(self) -> tuple[str, ...]: ...

    @property
    def freeze(self) -> int: ...

    @property
    def batch_norm(self) -> Literal["train", "eval"]: ...

    @property
    def batch_norm_momentum(self) -> float | None: ...


class Backbone(nn.Module):
    """Blocks in order; the first `freeze` keep weights and batch-norm statistics.

    forward: images [N, 3, H, W] (normalised as ImageNet's) -> features [N, channels, S, S].

    ends: numbers of leading blocks behind which maps are taken, ascending; none: the last map alone. Several are
    brought to the grid of the largest one and stand behind each other in `channels`.
    colours: means and deviations of the images, in [0, 1], that the weights were trained with.
    batch_norm: `eval` keeps the statistics of all blocks, frozen or not, and trains scale and shift of those that are
    not; batch_norm_momentum: share of each batch in the running statistics, None: as the network has it.
    folds: whether blocks that do not train run in fewer passes, to the same numbers but for rounding (`folded.py`). Not
    where a score is a distance that makes much of rounding.
    """

    folds = False
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        blocks: list[nn.Module],
        channels: int,
        freeze: int = 0,
        ends: Iterable[int] = (),
        colours: tuple[Colour, Colour] = IMAGENET_COLOURS,
        batch_norm: Literal["train", "eval"] = "train",
        batch_norm_momentum: float | None = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self._foldings = Foldings()
        self.channels = channels
        self.freeze = min(freeze, len(blocks))
        self.ends = frozenset(ends) or frozenset({len(blocks)})
        # a map that is taken inside the frozen blocks is needed too, so `frozen` goes no further than the first one
        self.kept = min(self.freeze, *self.ends)
        for block in self.blocks[: self.freeze]:
            block.requires_grad_(False)
        self.batch_norm = batch_norm
        if batch_norm_momentum is not None:
            for norm in self._trained_norms():
                norm.momentum = batch_norm_momentum
        self.recolours = colours != IMAGENET_COLOURS
        if self.recolours:
            mean, std = map(torch.tensor, colours)
            # not of the state: the configuration says which backbone it is
            self.register_buffer("scale", _each(torch.tensor(IMAGENET_STD) / std), persistent=False)
            self.register_buffer("shift", _each((torch.tensor(IMAGENET_MEAN) - mean) / std), persistent=False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for block in self.blocks[: self.freeze]:
            block.eval()
        if self.batch_norm == "eval":
            for norm in self._trained_norms():
                norm.eval()
        return self

    def _trained_norms(self) -> Iterator[BatchNorm]:
        for block in self.blocks[self.freeze :]:
            yield from (module for module in block.modules() if isinstance(module, BatchNorm))

    def forward(self, images: Tensor) -> Tensor:
        return self.after_frozen(self.frozen(images))

    def frozen(self, images: Tensor) -> Tensor:
        """What the frozen blocks, up to the first tap, make of images; the images themselves where none is frozen."""
        images = self._coloured(images)
        for number in range(self.kept):
            images = self._block(number, images)
        return images

    def after_frozen(self, maps: Tensor) -> Tensor:
        """Features from what `frozen` gave."""
        return on_one_grid(self._taken(maps))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps [N, C_i, S_i, S_i] as they are, the shallowest first; those of one block stand on one grid."""
        return self._taken(self.frozen(images))

    def behind(self, maps: Tensor, ends: Collection[int], start: int = 0) -> dict[int, Tensor]:
        """The maps behind these numbers of leading blocks, `start` at least, by number.

        maps: what the first `start` blocks gave; with 0 images, as `forward` takes them.
        """
        maps = maps if start else self._coloured(maps)
        found = {start: maps} if start in ends else {}
        for number in range(start, max(ends, default=0)):
            maps = self._block(number, maps)
            if number + 1 in ends:
                found[number + 1] = maps
        return found

    def with_maps(self, images: Tensor, ends: Collection[int]) -> tuple[Tensor, list[Tensor]]:
        """Features as `forward` gives them, and the maps behind other numbers of blocks, ascending, in one pass."""
        found = self.behind(images, self.ends | set(ends))
        return on_one_grid([found[end] for end in sorted(self.ends)]), [found[end] for end in sorted(ends)]

    def _coloured(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift if self.recolours else images

    def _taken(self, maps: Tensor) -> list[Tensor]:
        taken = [maps] if self.kept in self.ends else []
        for number in range(self.kept, len(self.blocks)):
            maps = self._block(number, maps)
            if number + 1 in self.ends:
                taken.append(maps)
        return taken

    def _block(self, number: int, maps: Tensor) -> Tensor:
        """A block's own map, in fewer passes where nothing of it trains now."""
        block = self.blocks[number]
        if self.folds and (number < self.freeze or not (self.training or torch.is_grad_enabled())):
            block = self._foldings.of(number, block, maps)
        found: Tensor = block(maps)
        return found


def build_backbone(choice: BackboneChoice, weights: Path | None) -> Backbone:
    """The backbone of a configuration; `weights`: an ImageNet state-dict file, or None for random ones.

    Raises WeightsError where the file does not fit or the backbone's package is missing.
    """
    entry, taps = backbone_entry(choice.backbone), tap_list(choice.backbone, choice.tap_names)
    entry.check_packages()
    net = entry.build()
    if weights is not None:
        net = entry.load(net, read_state(weights), str(weights))
    ends = sorted({tap.after for tap in taps})
    blocks = entry.blocks(net, taps)[: ends[-1]]
    channels = sum(tap.channels for tap in taps)
    colours = entry.mean, entry.std
    return Backbone(blocks, channels, choice.freeze, ends, colours, choice.batch_norm, choice.batch_norm_momentum)


def _each(colours: Tensor) -> Tensor:
    return colours[:, None, None]
