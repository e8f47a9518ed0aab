"""The detector: backbone, image pyramid and heads; from images to one anomaly score each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sctune.backbones.registry import feature_side
from sctune.backbones.trunk import Backbone, build_backbone
from sctune.backbones.weights import resolve_weights
from sctune.config import ScoreConfig, TrialConfig
from sctune.errors import CheckpointError
from sctune.geometry import scale_sizes
from sctune.methods.deviation.heads import LatentResidualHead, NormalHead, PatchResidualHead, build_head
from sctune.methods.deviation.roles import combine, head_roles
from sctune.methods.pixels import autocast, memory_format, normalise, score_alike, to_pixels


class Detector(nn.Module):
    """Heads over a shared backbone, at every scale of the pyramid (paper section 3; METHODS 1.2 row 17, 3.1).

    forward gives a score [N] per head, the mean over the scales; the anomaly score is the sum of the heads' scores,
    the normal head's subtracted. roles: head name -> what it is for.

    references: uint8 [R, S, S, 3], part of the state, where a head compares with reference images; the trainer sets
    them, and scores without them raise ValueError.
    """

    references: Tensor

    def __init__(self, config: TrialConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        backbone.folds = True
        self.roles = head_roles(config)
        for name in self.roles:
            self.add_module(name, build_head(name, config.model, backbone.channels))
        self.needs_references = any(isinstance(self.head(name), LatentResidualHead) for name in self.roles)
        if self.needs_references:
            side = config.data.image_size
            blank = torch.zeros(config.model.reference_count, side, side, 3, dtype=torch.uint8)
            self.register_buffer("references", blank)

    def head(self, name: str) -> nn.Module:
        return self.get_submodule(name)

    def set_references(self, images: np.ndarray) -> None:
        """Take uint8 images [R, S, S, 3] as those that the latent residual is measured from when scoring."""
        self.references.copy_(torch.from_numpy(np.array(images)))

    def draw_offsets(self, batch: int, generator: torch.Generator | None = None) -> list[Tensor] | None:
        """Random patch positions for one forward pass, [1 or batch, P, 2] for each scale; None without a patch head."""
        model, head = self.config.model, self._modules.get("anomaly")
        if not isinstance(head, PatchResidualHead):
            return None
        sizes = scale_sizes(self.config.data.image_size, model.n_scales)
        sides = [feature_side(size, model.backbone, model.tap_names) for size in sizes]
        return [head.draw_offsets(side, batch, generator) for side in sides]

    def forward(
        self, images: Tensor, offsets: list[Tensor] | None = None, references: Tensor | list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Scores of normalised images [N, 3, H, W]: head name -> [N].

        references: images [R, 3, H, W] that pass through the backbone together with the batch (training), their
        mean feature maps as `reference_maps` gives them, or None for the stored ones.
        """
        levels = self._pyramid(images)
        if isinstance(references, Tensor):
            count = len(references)
            both = [self._features(torch.cat(pair)) for pair in zip(self._pyramid(references), levels, strict=True)]
            means = [level[:count].mean(dim=0, keepdim=True) for level in both]
            return self._head_scores([level[count:] for level in both], offsets, means)
        if self.needs_references and references is None:
            references = self.reference_maps()
        return self._head_scores([self._features(level) for level in levels], offsets, references)

    def features(self, images: Tensor) -> list[Tensor]:
        """The backbone's maps [N, C, S, S] of normalised images [N, 3, H, W], one for each scale of the pyramid."""
        return [self._features(level) for level in self._pyramid(images)]

    def with_maps(self, images: Tensor, ends: Collection[int]) -> tuple[list[Tensor], list[Tensor]]:
        """`features`, and the maps of the images at full size behind these numbers of blocks, in one pass."""
        full, *rest = self._pyramid(images)
        with autocast(self.config.runtime, full.device):
            features, maps = self.backbone.with_maps(full, ends)
        return [features.float(), *(self._features(level) for level in rest)], [one.float() for one in maps]

    def reference_maps(self, images: Tensor | None = None) -> list[Tensor]:
        """Mean feature map [1, C, S, S] at each scale of references [R, 3, H, W], or of the stored ones."""
        images = self._stored_references() if images is None else images
        return [self._features(level).mean(dim=0, keepdim=True) for level in self._pyramid(images)]

    def _stored_references(self) -> Tensor:
        if not bool(self.references.any()):
            raise ValueError("the detector has no reference images; call set_references first")
        return normalise(to_pixels(self.references.cpu().numpy(), self.references.device))

    def views(self, images: Tensor, turns: int | None = None) -> Tensor:
        """Images [N, 3, S, S] in each turn that they are scored in: [T * N, 3, S, S], first all as they are.

        turns: 1 or 4; none: `config.score.turns`. Together, so that an exported program holds the network once.
        """
        count = turns or self.config.score.turns
        return images if count == 1 else torch.cat([images.rot90(turn, (2, 3)) for turn in range(count)])

    def turned_references(self, turns: int | None = None) -> list[Tensor] | None:
        """At each scale the mean map [T, C, S, S] of the stored references, turned as `views` are; None: no need."""
        if not self.needs_references:
            return None
        count = turns or self.config.score.turns
        views = self.views(self._stored_references(), count).chunk(count)
        return [torch.cat(levels) for levels in zip(*map(self.reference_maps, views), strict=True)]

    def anomaly_score(self, images: Tensor, references: list[Tensor] | None = None) -> Tensor:
        """One score [N] per normalised image, as `config.score` has it: mean over turns, weighed heads and scales.

        Higher is more anomalous. references: as `turned_references` gives them.
        """
        if references is None:
            references = self.turned_references()
        return self.score_features(self.features(self.views(images)), references)

    def score_images(self, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """Scores [N] (float64) of uint8 images [N, S, S, 3], in eval mode; the mode is put back."""
        with self.scoring():
            maps = self.turned_references()
            return self._in_batches(images, batch_size, lambda batch: self.anomaly_score(batch, maps).double())

    def score_alike(self, images: np.ndarray) -> np.ndarray:
        """As `score_images`; the same image has the same score to the last bit, whatever stands beside it."""
        return score_alike(self.score_images, images, next(self.parameters()).device)

    def frozen_maps(self, images: np.ndarray, max_bytes: int, batch_size: int = 32) -> list[list[Tensor]] | None:
        """What the frozen blocks make of the views of uint8 images [N, S, S, 3]: batches, each with a map per scale.

        None where all of them would take more than max_bytes.
        """
        found: list[list[Tensor]] = []
        with self.scoring():
            for batch in self._batches(images, batch_size):
                with autocast(self.config.runtime, batch.device):
                    found.append([self.backbone.frozen(level) for level in self._pyramid(self.views(batch))])
                size = sum(level.nbytes for level in found[0])
                if size * len(images) > max_bytes * min(batch_size, len(images)):
                    return None
        return found

    def score_maps(self, maps: list[list[Tensor]]) -> np.ndarray:
        """Scores [N] (float64) from `frozen_maps`: those of `score_images`, bit for bit."""
        with self.scoring():
            references = self.turned_references()
            parts = []
            for levels in maps:
                features = [self._after_frozen(level) for level in levels]
                parts.append(self.score_features(features, references).double())
            return torch.cat(parts).cpu().numpy()

    def embed(self, images: np.ndarray, batch_size: int = 32) -> np.ndarray:
        """Features [N, C] of uint8 images [N, S, S, 3]: the backbone's map at full scale, averaged over its cells."""
        with self.scoring():
            return self._in_batches(images, batch_size, lambda batch: self._features(batch).mean(dim=(2, 3)))

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """In eval mode and without gradients; the mode is put back."""
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(was_training)

    def _in_batches(self, images: np.ndarray, batch_size: int, apply: Callable[[Tensor], Tensor]) -> np.ndarray:
        parts = [apply(batch) for batch in self._batches(images, batch_size)]
        return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)

    def _batches(self, images: np.ndarray, batch_size: int) -> Iterator[Tensor]:
        device, channels_last = next(self.parameters()).device, self.config.runtime.channels_last
        for start in range(0, len(images), batch_size):
            yield normalise(to_pixels(images[start : start + batch_size], device, channels_last))

    def _features(self, batch: Tensor) -> Tensor:
        # heads stay in fp32: scores in bfloat16 would tie
        with autocast(self.config.runtime, batch.device):
            features: Tensor = self.backbone(batch)
        return features.float()

    def _after_frozen(self, maps: Tensor) -> Tensor:
        with autocast(self.config.runtime, maps.device):
            features = self.backbone.after_frozen(maps)
        return features.float()

    def score_features(self, features: list[Tensor], references: list[Tensor] | None) -> Tensor:
        """Anomaly scores [N] from the backbone's maps of `views`, weighed as `config.score` says."""
        score = self.config.score
        scales = self.scale_scores(features, None, for_views(references, features), score.top_k)
        return over_turns(self.weigh(scales, score), score.turns)

    def weigh(self, scales: dict[str, list[Tensor]], score: ScoreConfig) -> Tensor:
        """Anomaly scores [N] from each head's scores at each scale."""
        weights = {"normal": score.normal, "seen": score.seen, "pseudo": score.pseudo}
        return combine(_over_scales(scales, score.full_scale), self.roles, weights)

    def scale_scores(
        self,
        features: list[Tensor],
        offsets: list[Tensor] | None,
        references: list[Tensor] | None,
        top_k: float | None = None,
    ) -> dict[str, list[Tensor]]:
        """Scores [N] of each head at each scale; top_k: another share of the highest cells than in training."""
        scores: dict[str, list[Tensor]] = {name: [] for name in self.roles}
        for scale, level in enumerate(features):
            place = None if offsets is None else offsets[scale]
            reference = None if references is None else references[scale]
            for name in self.roles:
                scores[name].append(self._head_score(self.head(name), level, place, reference, top_k))
        return scores

    def _head_scores(
        self, features: list[Tensor], offsets: list[Tensor] | None, references: list[Tensor] | None
    ) -> dict[str, Tensor]:
        """Mean over the scales of each head's scores [N]."""
        return _over_scales(self.scale_scores(features, offsets, references))

    @staticmethod
    def _head_score(
        head: nn.Module, features: Tensor, offsets: Tensor | None, reference: Tensor | None, top_k: float | None
    ) -> Tensor:
        if isinstance(head, NormalHead):
            return head(features)
        if isinstance(head, PatchResidualHead):
            return head(features, offsets, top_k)
        if isinstance(head, LatentResidualHead):
            return head(features, reference, top_k)
        return head(features, top_k)

    def _pyramid(self, images: Tensor) -> list[Tensor]:
        model = self.config.model
        levels = [images]
        for size in scale_sizes(images.shape[-1], model.n_scales)[1:]:
            corners = {"nearest": None, "bilinear": False}[model.pyramid_interpolation]
            levels.append(
                nn.functional.interpolate(
                    images, size=(size, size), mode=model.pyramid_interpolation, align_corners=corners
                )
            )
        return levels


def for_views(references: list[Tensor] | None, features: list[Tensor]) -> list[Tensor] | None:
    """Reference maps [T, C, S, S] at each scale as ones that go with features [T * N, C, S, S] of `Detector.views`."""
    if references is None or references[0].shape[0] == 1:
        return references
    # not len(), which would fix the batch of an exported program
    count = features[0].shape[0] // references[0].shape[0]
    return [level[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1) for level in references]


def over_turns(values: Tensor, turns: int) -> Tensor:
    """Mean [N, ...] over the turns of what was found for `Detector.views`, [T * N, ...]; of a single one itself."""
    return values if turns == 1 else values.unflatten(0, (turns, -1)).mean(dim=0)


def _over_scales(scales: dict[str, list[Tensor]], share: float = 0.5) -> dict[str, Tensor]:
    """Each head's scores [N]: the mean over the scales, or that with `share` for the first of two."""
    if share == 0.5 or any(len(parts) == 1 for parts in scales.values()):
        return {name: torch.stack(parts).mean(dim=0) for name, parts in scales.items()}
    return {name: share * full + (1 - share) * half for name, (full, half) in scales.items()}


def build_detector(config: TrialConfig, weights: Path | None = None) -> Detector:
    """A fresh detector: backbone weights as the configuration says, heads initialised from its seed.

    weights: the resolved file, where the caller has it already (the driver fetches it once).
    Raises WeightsError where weights cannot be had.
    """
    if weights is None:
        weights = resolve_weights(config.model.backbone, config.model.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Detector(config, build_backbone(config.model, weights))


def load_detector(config: TrialConfig, weights: Path) -> Detector:
    """A trained detector from its safetensors file; backbone weights are in it. In eval mode."""
    return detector_of(config, load_file(weights))


def detector_of(config: TrialConfig, tensors: Mapping[str, Tensor]) -> Detector:
    """A trained detector from its state, in eval mode; raises CheckpointError where the state is of another model."""
    detector = Detector(config, build_backbone(config.model, None))
    try:
        detector.load_state_dict(tensors)
    except RuntimeError as problem:
        raise CheckpointError(
            f"the weights do not fit the model: {str(problem).splitlines()[-1].strip()}; they are of another one"
        ) from None
    return detector.to(memory_format=memory_format(config.runtime)).eval()
