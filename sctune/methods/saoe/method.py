"""SAOE as a method: what each member sees in a step, and the scale of its logits after each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sctune.backbones.trunk import build_backbone
from sctune.config import TrialConfig
from sctune.data.batches import stream
from sctune.errors import CheckpointError, DataError
from sctune.methods.base import Maps, PseudoExample, Scores, TaskImages, Variant
from sctune.methods.clock import now
from sctune.methods.network import Ask, NetworkMethod, Part, joined, trunk_maps
from sctune.methods.pixels import to_images, to_pixels
from sctune.methods.saoe.batch import MemberBatch, make_synthetic, member_batch
from sctune.methods.saoe.entry import MEMBERS, SaoeSection
from sctune.methods.saoe.network import SaoeNetwork
from sctune.methods.saoe.outliers import Outliers, open_outliers
from sctune.methods.saoe.turned import LEAST, TURNS, unlike_turns

TURNED = "turned"
SCORED = "method.scored"
OUTLIERS, QUARTERS = "outliers", "turns"
"""Names of the digest of the outliers, and of the turns of the turned member, among the values of a state."""
MOST_TURNED = 150
"""Normal images that say whether they look other in a turn; a third of them is turned."""
NO_MEMBER = (
    f"method.members={TURNED}: in no quarter turn normal images look other than they do, or they are too few to tell, "
    f"so no member is left; use method.turned=always, or {' or '.join(MEMBERS[:2])}"
)
LEAST_DEVIATION = 0.05
"""Of a member's logits on normal images: those that are all but the same are not blown up, and rounding with them."""


class SaoeMethod(NetworkMethod):
    network: SaoeNetwork

    def __init__(self, config: TrialConfig, device: torch.device, network: nn.Module) -> None:
        super().__init__(config, device, network)
        self.turns: tuple[int, ...] = TURNS
        self.outliers: Outliers | None = None
        self._seconds = 0.0

    @classmethod
    def build(cls, config: TrialConfig, weights: Path | None) -> nn.Module:
        section = _section(config)
        return SaoeNetwork(section.names, build_backbone(config.model, weights), config.runtime, section.scored)

    @classmethod
    def trained(cls, config: TrialConfig, device: torch.device, tensors: Mapping[str, Tensor]) -> Self:
        method = cls(config, device, cls.build(config, None))
        there = {name.split(".")[1] for name in tensors if name.startswith("members.")}
        if not there:
            raise CheckpointError(f"the model is none of method {config.method.name}: it has no members")
        for name in method.network.names:
            if name == TURNED and name not in there:
                method.network.leave_out(name)
        method.load_model_state(tensors)
        return method

    def prepare(self, images: TaskImages) -> None:
        super().prepare(images)
        section = self._section
        if TURNED in self.network.names and section.turned == "auto":
            started = now(self.device)
            self.turns = self._unlike_turns(images)
            self._seconds = now(self.device) - started
            # the only member stays, since a checkpoint may know turns to learn from (`_take_turns`)
            if not self.turns and self.network.names != [TURNED]:
                self._without_turned(images)
        if section.outlier_root is not None:
            self.outliers = open_outliers(Path(section.outlier_root), section.outlier_limit, self.config)

    def batch(self, name: str, number: int) -> MemberBatch:
        """What a member learns from in step `number`."""
        return member_batch(self.config, self.images, self.outliers, name, self.turns, number, self.device)

    def losses(self, number: int) -> Iterator[Part]:
        names = self.network.names
        if not self.turns and names == [TURNED]:
            raise DataError(NO_MEMBER)
        for name in names if self._section.updates == "each" else [names[number % len(names)]]:
            batch = self.batch(name, number)
            member = self.network.member(name)
            loss = nn.functional.binary_cross_entropy_with_logits(member(batch.images), batch.labels)
            yield Part(loss, member, {f"loss_{name}": loss})

    def settle(self, ask: Ask) -> dict[str, float]:
        """The moments of the members' logits on normal images as they are."""
        network, images, most = self.network, self.images, self._section.scale_normals
        normals = self.walk(images.take(self.some_normals(most)), network.logits, images.normals, ask=ask)
        logits = joined(normals).astype(np.float64)
        deviations = np.maximum(logits.std(axis=0, ddof=1), LEAST_DEVIATION)
        network.moments.copy_(torch.from_numpy(np.stack([logits.mean(axis=0), deviations])))
        figures = {"members": float(len(network.names))}
        if len(images.anomalies) and self.config.n_anomalies != 0:
            seen = self.walk(images.take(images.anomalies[:most]), network.logits, images.anomalies, ask=ask)
            away = network.scaled(torch.cat(list(seen))).cpu().numpy().mean(axis=0)
            figures |= {f"seen_{name}": float(value) for name, value in zip(network.names, away, strict=True)}
        return figures

    def frozen(self, pixels: Tensor) -> Tensor | None:
        return self.network.frozen(pixels)

    def scores_of(self, pixels: Tensor, frozen: Tensor | None) -> Tensor:
        return self.network.combined(self.network.logits(pixels, frozen), self.network.scored)

    @property
    def images_per_epoch(self) -> int:
        return super().images_per_epoch * (len(self.network.names) if self._section.updates == "each" else 1)

    def time_step(self) -> tuple[float, int]:
        seconds, steps = super().time_step()
        # the look at turned images is once in a training
        return seconds + self._seconds / (steps * self.config.epochs), steps

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, values = super().state()
        values = values | {QUARTERS: list(self.turns)}
        return tensors, values if self.outliers is None else values | {OUTLIERS: self.outliers.digest}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        own = None if self.outliers is None else self.outliers.digest
        if values.get(OUTLIERS) != own:
            raise CheckpointError(
                f"the checkpoint was trained with other files of method.outlier_root={self._section.outlier_root}; put "
                "them back, or start the trial anew"
            )
        self._take_turns(values.get(QUARTERS))
        super().load_state(tensors, values)

    def _take_turns(self, turns: Any) -> None:
        """Those that the training began with: on another device the look at turned images may end otherwise."""
        wrong = not isinstance(turns, list) or any(turn not in TURNS for turn in turns)
        # such a training has no member, and so never began
        if wrong or (not turns and self._section.names == (TURNED,)):
            raise CheckpointError(f"the checkpoint does not fit method saoe: its {QUARTERS} are {turns!r}")
        self.turns = tuple(turns)
        there = TURNED in self.network.names
        if TURNED not in self._section.names or there == bool(turns):
            return
        if there:
            self.network.leave_out(TURNED)
        else:
            self.network.take_in(TURNED)
        # an optimiser of the weights that are there
        super().prepare(self.images)

    def cells(self, images: np.ndarray) -> Maps | None:
        return self.over(images, self.network.cells).astype(np.float32)

    def embed(self, images: np.ndarray) -> NDArray[np.float32] | None:
        if not len(images):
            return None
        return self.over(images, lambda pixels: torch.cat([m.mean((2, 3)) for m in self.network.maps(pixels)], 1))

    def examples(self, normals: np.ndarray, count: int) -> list[PseudoExample]:
        """Synthetic anomalies of the members in turn, of images that the partition seed draws."""
        if not len(normals):
            raise DataError("a gallery needs a held-out normal image at least")
        order = torch.randperm(len(normals), generator=stream(self.config.data.partition_seed, "gallery")).numpy()
        found = []
        for place, row in enumerate(order[:count]):
            name = self.network.names[place % len(self.network.names)]
            pixels = to_pixels(normals[row : row + 1], self.device)
            made = make_synthetic(name, pixels, self._section, self.turns, stream(self.config.seed, "gallery", place))
            result = to_images(made.images)[0].cpu().numpy()
            found.append(PseudoExample(normals[row], normals[row], None, made.pasted[0, 0].cpu().numpy(), result))
        return found

    @staticmethod
    def variants(config: TrialConfig) -> list[Variant]:
        section = _section(config)
        choices = [section.scored, *(scored for scored in (None, *section.names) if scored != section.scored)]
        return [{SCORED: scored} for scored in choices]

    def variant_scores(self, images: np.ndarray, variants: Sequence[Variant]) -> list[Scores]:
        logits = torch.from_numpy(self.over(images, self.network.logits)).to(self.device)
        chosen = [_section(self.config.override(variant)).scored for variant in variants]
        return [self.network.combined(logits, scored).cpu().numpy().astype(np.float64) for scored in chosen]

    def _unlike_turns(self, images: TaskImages) -> tuple[int, ...]:
        rows = self.some_normals(MOST_TURNED)
        held = images.take(rows[2::3])
        trunk = self.network.member(TURNED).backbone

        def pooled(some: np.ndarray) -> NDArray[np.float32]:
            return self.over(some, lambda pixels: trunk_maps(trunk, pixels, self.config.runtime).mean(dim=(2, 3)))

        if len(held) < LEAST:
            return ()
        fitted = pooled(images.take(np.delete(rows, np.s_[2::3])))
        return unlike_turns(fitted, pooled(held), {turn: pooled(np.rot90(held, turn, (1, 2))) for turn in TURNS})

    def _without_turned(self, images: TaskImages) -> None:
        self.network.leave_out(TURNED)
        # an optimiser without its weights
        super().prepare(images)

    @property
    def _section(self) -> SaoeSection:
        return _section(self.config)


def _section(config: TrialConfig) -> SaoeSection:
    assert isinstance(config.method, SaoeSection)
    return config.method
