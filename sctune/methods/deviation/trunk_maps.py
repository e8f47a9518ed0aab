"""What a density sees of images through the trunk of a detector that trains."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sctune.methods.deviation.method import DeviationMethod
from sctune.methods.pixels import ALIKE_BATCH, autocast, normalise, to_pixels
from sctune.methods.room import Share, room_of
from sctune.methods.untrained.extractor import Extractor
from sctune.methods.untrained.reference import Ask, Images

MAX_BYTES = 2**28
"""Most memory of what frozen blocks gave of training images; of those beyond it is computed again."""


@dataclass(frozen=True)
class Half:
    """What the frozen blocks make of a few images: their last map, and the parts of those that are looked at."""

    last: Tensor
    parts: dict[int, Tensor]

    @property
    def nbytes(self) -> int:
        return self.last.nbytes + sum(part.nbytes for part in self.parts.values())


class TrunkMaps:
    """ends: numbers of leading blocks behind which is looked; kind: what is made of their maps.

    Frozen blocks see the training images once, since they give the same in every epoch.
    """

    def __init__(self, method: DeviationMethod, ends: Collection[int], kind: type[Extractor]) -> None:
        self.method = method
        self.ends = frozenset(ends)
        self.kind = kind
        self._kept: dict[str, list[Half]] = {}
        self._share = Share(MAX_BYTES, room_of(method.device))

    def walk(self, images: Images, ask: Ask = lambda: None, name: str | None = None) -> Iterator[Tensor]:
        """Features [n, ...] of a few uint8 images [n, S, S, 3] at a time, on the method's device.

        name: of images that are walked over again, always the same.
        """
        size = ALIKE_BATCH["cuda" if self.method.device.type == "cuda" else "cpu"]
        for number, start in enumerate(range(0, len(images), size)):
            ask()
            with self.method.scored.scoring():
                kept = [] if name is None else self._kept.setdefault(name, [])
                if number < len(kept):
                    half = kept[number]
                else:
                    half = self._half(images[start : start + size])
                    self._keep(kept, half, number)
                found = self._features(half)
            yield found

    def maps(self, images: np.ndarray) -> list[Tensor]:
        """The maps [N, C_i, S_i, S_i] of uint8 images [N, S, S, 3], the shallowest first."""
        detector = self.method.scored
        with detector.scoring():
            _, maps = detector.with_maps(self._normalised(images), self.ends)
        # not of inference mode: heat maps ask for gradients
        return [one.clone() for one in maps]

    def _keep(self, kept: list[Half], half: Half, number: int) -> None:
        if self._frozen and number == len(kept) and self._share.take(half.nbytes):
            kept.append(half)

    def _half(self, images: np.ndarray) -> Half:
        pixels, frozen = self._normalised(images), self._frozen
        if not frozen:
            return Half(pixels, {})
        with autocast(self.method.config.runtime, self.method.device):
            maps = self.method.scored.backbone.behind(pixels, {*self._early, frozen})
        return Half(maps[frozen], {end: self.kind.part(maps[end].float()) for end in self._early})

    def _features(self, half: Half) -> Tensor:
        with autocast(self.method.config.runtime, self.method.device):
            later = self.method.scored.backbone.behind(half.last, self.ends - self._early, self._frozen)
        parts = half.parts | {end: self.kind.part(one.float()) for end, one in later.items()}
        return self.kind.join([parts[end] for end in sorted(parts)])

    @property
    def _frozen(self) -> int:
        return self.method.scored.backbone.freeze

    @property
    def _early(self) -> frozenset[int]:
        return frozenset(end for end in self.ends if end <= self._frozen)

    def _normalised(self, images: np.ndarray) -> Tensor:
        return normalise(to_pixels(images, self.method.device, self.method.config.runtime.channels_last))
