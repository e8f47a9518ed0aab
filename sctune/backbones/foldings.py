"""The folded blocks of a network, made anew where their weights have changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from sctune.backbones.folded import folded
from sctune.backbones.torch_private import is_watched, version_of


@dataclass(frozen=True)
class _Seen:
    """Weights and statistics of a block as they were: the memory where they lie, held so that it stays theirs."""

    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, block: nn.Module) -> Self:
        tensors = tuple(one.detach() for one in _tensors(block))
        return cls(tensors, tuple(map(version_of, tensors)))

    def are(self, block: nn.Module) -> bool:
        now = _tensors(block)
        return len(now) == len(self.tensors) and all(
            one.data_ptr() == seen.data_ptr() and version_of(one) == version
            for one, seen, version in zip(now, self.tensors, self.versions, strict=True)
        )


class Foldings:
    """Folded copies of blocks by their number; not a part of the module, its state or its copies."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[_Seen, nn.Module]] = {}

    def of(self, number: int, block: nn.Module, maps: Tensor) -> nn.Module:
        """What computes a block that does not train, for these maps: folded for several images in float32 on a CPU.

        One image alone is no quicker folded: what oneDNN does once for a call takes longer than what it saves.
        """
        if (
            # first: an export must not ask how many images there are
            torch.compiler.is_compiling()
            or len(maps) == 1
            or maps.device.type != "cpu"
            or maps.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")
            # made in inference mode, so that nothing tells whether they change
            or any(one.is_inference() for one in _tensors(block))
            or is_watched(block)
            # oneDNN's activations make numbers of NaN, which must be seen
            or not bool(torch.isfinite(maps.detach().sum()))
        ):
            return block
        seen, made = self._made.get(number, (None, block))
        if seen is None or not seen.are(block):
            # also for training, which takes no tensor of inference mode
            with torch.inference_mode(False), torch.no_grad():
                seen, made = _Seen.of(block), folded(block) if _is_finite(block) else block
            self._made[number] = seen, made
        return made

    def __deepcopy__(self, memo: object) -> Foldings:
        return Foldings()

    def __reduce__(self) -> tuple[type[Foldings], tuple[()]]:
        return Foldings, ()


def _is_finite(block: nn.Module) -> bool:
    """As of the maps above: what these weights give must stay no number."""
    return all(bool(torch.isfinite(one).all()) for one in _tensors(block))


def _tensors(block: nn.Module) -> list[Tensor]:
    return [*block.parameters(), *block.buffers()]
