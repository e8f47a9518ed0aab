"""SSM as a method: a step hides cells of normal images, and scoring compares images with what is made of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sctune.config import TrialConfig
from sctune.data.batches import endless, stream
from sctune.data.transfer import to_device
from sctune.errors import CheckpointError
from sctune.methods.base import Maps, Scorer, Scores, TaskImages, Variant
from sctune.methods.gradient import gradient_maps
from sctune.methods.length import Length
from sctune.methods.network import Ask, NetworkMethod, Part
from sctune.methods.pixels import autocast, score_alike, to_images, to_pixels
from sctune.methods.ssm.entry import CELLS, SIDE, section_of, sides_of
from sctune.methods.ssm.loss import masking_losses, weighted
from sctune.methods.ssm.masks import SETS, hide_sets, surely_normal
from sctune.methods.ssm.network import reconstruct
from sctune.methods.ssm.scoring import ErrorScore, images_at_once, scoring_masks

CALIBRATION_NORMALS = 32
"""Most training normals whose errors say which error is surely normal."""
SIGMAS = (2.0, 4.0, 7.0, 10.0)
"""Of the smoothing, that `sctune rescore` tries."""
REFINE, SCORED, WEIGHT, SIGMA = "method.refine", "method.score_cells", "method.weight", "method.sigma"


class SsmMethod(NetworkMethod):
    """A U-Net that makes normal images anew from what masks show of them; labelled anomalies are left out.

    The network is an ErrorScore. A batch of budget.batch_size passes holds a third as many images, each in three masks.
    """

    network: ErrorScore

    @classmethod
    def build(cls, config: TrialConfig, weights: Path | None) -> nn.Module:
        return ErrorScore(config)

    @classmethod
    def fresh(cls, config: TrialConfig, device: torch.device, weights: Path | None = None) -> Self:
        # it has no backbone, so there are no weights to look for
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(config, device, cls.build(config, None))

    def prepare(self, images: TaskImages) -> None:
        super().prepare(images)
        unet = self.network.unet
        passes = -(-len(images.normals) // self.images_per_step)
        self._length = Length(self.config, section_of(self.config).total_updates, passes)
        self._unet: nn.Module = torch.compile(unet) if self.config.runtime.compile else unet  # type: ignore[assignment]

    @property
    def images_per_step(self) -> int:
        return self.config.budget.batch_size // SETS

    @property
    def images_per_epoch(self) -> int:
        return len(self.steps(0)) * self.images_per_step

    def steps(self, epoch: int) -> range:
        return range(self._length.before(epoch), self._length.before(epoch + 1))

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Images [N, 3, 128, 128] of step `number`, and the masks [1, 3, 1, 128, 128] that all of them get.

        Normal images come from endless permutations; the side of the cells and the three sets are drawn for the step.
        """
        seed, normals = self.config.seed, self.images.normals
        rows = normals[endless(len(normals), self.images_per_step, number, seed, "normal")]
        pixels = to_pixels(self.images.take(rows), self.device, self.config.runtime.channels_last)
        generator = stream(seed, "hidden cells", number)
        sides = sides_of(section_of(self.config).cells)
        side = sides[int(torch.randint(len(sides), (1,), generator=generator))]
        return self.network.shrunk(pixels), to_device(hide_sets(SIDE, side, generator), self.device)[None]

    def losses(self, number: int) -> Iterator[Part]:
        images, masks = self.batch(number)
        with autocast(self.config.runtime, self.device):
            made, seen = reconstruct(self._unet, images, masks)
        parts = masking_losses(images, made.float(), masks, seen.float())
        figures = {f"loss_{name}": value for name, value in parts.items()}
        yield Part(weighted(parts, section_of(self.config)), self.network, figures)

    def settle(self, ask: Ask) -> dict[str, float]:
        """The error below which a pixel is surely normal, where a second round asks for it."""
        section, network = section_of(self.config), self.network
        if not section.refine or section.refine_quantile == "published":
            return {}
        normals = self.images.take(self.some_normals(CALIBRATION_NORMALS))
        errors = self.over(normals, lambda pixels: network.first_round(network.shrunk(pixels)), batch_size=1, ask=ask)
        threshold = float(np.quantile(errors, section.refine_quantile))
        network.threshold.fill_(threshold)
        return {"sure_below": threshold}

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_model_state(tensors)
        network = self.network
        if network.section.refine and network.threshold.isnan() and network.has_learned:
            raise CheckpointError(
                "the model was trained with method.refine=false, and does not know which errors are surely normal; "
                "score it so, or train it with method.refine=true"
            )

    def score(self, images: np.ndarray) -> Scores:
        def scores(part: np.ndarray, batch_size: int) -> np.ndarray:
            # all sides of cells are hidden in one pass, which is not to grow with them
            return self.over(part, self.network, images_at_once(batch_size, len(self.network.sides)))

        found: Scores = score_alike(scores, images, self.device).astype(np.float64) if len(images) else np.zeros(0)
        return found

    def scorer(self) -> Scorer:
        # nothing in it is frozen, so there is nothing to keep
        return self.score

    def cells(self, images: np.ndarray) -> Maps | None:
        def maps(pixels: Tensor) -> Tensor:
            found = self.network.error_maps(pixels)[:, None]
            return functional.interpolate(found, size=pixels.shape[-2:], mode="bilinear", align_corners=False)[:, 0]

        found: Maps = self.over(images, maps, batch_size=1).astype(np.float32)
        return found

    def views(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What one of the first round's passes sees, what its three make of it, and what the second need not hide.

        With the largest cells that scores look at.
        """
        network, largest = self.network, max(self.network.sides)
        masks = scoring_masks(0, (largest,)).to(self.device)
        found = {
            f"hidden, cells of {largest}": self.over(
                images, lambda pixels: to_images(network.shrunk(pixels) * masks[0])
            ),
            "made anew in the first round" if network.section.refine else "made anew": self.over(
                images,
                lambda pixels: to_images(network.reconstructed(network.shrunk(pixels), masks)[:, 0]),
                batch_size=1,
            ),
        }
        if network.section.refine:
            found["surely normal"] = self.over(
                images,
                lambda pixels: surely_normal(network.first_round(network.shrunk(pixels)), network.threshold)[:, 0],
                batch_size=1,
            )
        return found

    def gradients(self, images: np.ndarray) -> Maps | None:
        module = self.module().to(self.device)
        # one by one: the passes of several images hold too much memory at once
        parts = [gradient_maps(module, images[place : place + 1], self.device) for place in range(len(images))]
        return np.concatenate([part for part in parts if part is not None])

    @staticmethod
    def variants(config: TrialConfig) -> list[Variant]:
        """Other cells, among those that training hid, shares of them and smoothing, in one round."""
        flat = config.flat()
        own = {name: flat[name] for name in (SCORED, WEIGHT, SIGMA, REFINE)}
        trained = sides_of(section_of(config).cells)
        sets = [
            ",".join(map(str, sides))
            for count in range(1, len(trained) + 1)
            for sides in itertools.combinations(trained, count)
        ]
        points: list[Variant] = [own]
        for cells, sigma in itertools.product(dict.fromkeys((own[SCORED], *sets)), sorted({*SIGMAS, own[SIGMA]})):
            for weight in ("cell", "equal") if "," in cells else (own[WEIGHT],):
                points.append({SCORED: cells, WEIGHT: weight, SIGMA: sigma, REFINE: False})
        return [point for place, point in enumerate(points) if point not in points[:place]]

    def variant_scores(self, images: np.ndarray, variants: Sequence[Variant]) -> list[Scores]:
        scorers = [self._scorer_of(variant) for variant in variants]
        sides = tuple(side for side in CELLS if any(side in scorer.sides for scorer in scorers))
        masks = scoring_masks(0, sides).to(self.device)
        places = [[sides.index(side) for side in scorer.sides] for scorer in scorers]

        def scores(pixels: Tensor) -> Tensor:
            # one reconstruction for all that only weigh and smooth its errors
            errors = self.network.errors(self.network.shrunk(pixels), masks)
            maps = [
                scorer.error_maps(pixels) if scorer.section.refine else scorer.combined(errors[:, chosen])
                for scorer, chosen in zip(scorers, places, strict=True)
            ]
            return torch.stack([each.flatten(1).amax(1) for each in maps], dim=1)

        found = self.over(images, scores, batch_size=1).astype(np.float64)
        return list(found.T)

    def _scorer_of(self, variant: Variant) -> ErrorScore:
        scorer = ErrorScore(self.config.override(variant), self.network.unet).to(self.device).eval()
        scorer.threshold.copy_(self.network.threshold)
        return scorer
