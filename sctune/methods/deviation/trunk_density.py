"""A density of what the trained trunk gives: fitted after every epoch, no network of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from sctune.config import TrialConfig
from sctune.data.batches import stream
from sctune.errors import CheckpointError, DataError, NonFiniteError
from sctune.methods.base import Maps, Scores
from sctune.methods.density import Gaussian, Rows, fit_gaussian
from sctune.methods.deviation.density import cell_share, density_config, trunk_ends
from sctune.methods.deviation.method import DeviationMethod
from sctune.methods.deviation.trunk_maps import TrunkMaps
from sctune.methods.untrained.cell_gaussian import CANDIDATES, NEIGHBOURHOOD, blank_cells, fit_cell_gaussian
from sctune.methods.untrained.cells import CellScore, Looking, highest, look
from sctune.methods.untrained.combination import Combination
from sctune.methods.untrained.crossfit import HeldOut, choose_weights, few_moments
from sctune.methods.untrained.entry import GaussianSection
from sctune.methods.untrained.extractor import CellGrid, PooledMaps
from sctune.methods.untrained.gaussian import GaussianScore, blank_pooled, score_shares, typical_maps
from sctune.methods.untrained.labelled import differences, directions
from sctune.methods.untrained.reference import FIT, LEAST_NORMALS, Ask, Picked, raised

SOME_NORMALS = 64
"""Fitted normals whose distances of cells are taken: enough for a floor of a deviation."""


@dataclass(frozen=True)
class Training:
    """What a density is fitted to and scaled by: images that the trunk trains on, and held-out normal ones."""

    normals: Picked
    anomalies: Picked
    held: Picked


class TrunkDensity:
    """The fit of method `gaussian`, to pooled or cell features of the trunk that scores.

    The trunk knows its training images, so that folds of them would not do: the scale is that of normal images that
    were held out of the training and of the fit. Anomalies that were trained on choose no weights; `auto` is the usual.
    """

    def __init__(self, config: TrialConfig, detector: DeviationMethod) -> None:
        self.config = config
        self.detector = detector
        section = density_config(config).method
        assert isinstance(section, GaussianSection)
        self._section = section
        self.ends = trunk_ends(config)
        self.kind = CellGrid if section.features == "cells" else PooledMaps
        self.model: nn.Module | None = None
        self._trunk = TrunkMaps(detector, self.ends, self.kind)
        self._training: Training | None = None

    def prepare(self, training: Training) -> None:
        """Of more normals than `method.max_normals` of `gaussian`, so many are drawn by the seed.

        Raises DataError for too few of them.
        """
        normals, most = training.normals, self._section.max_normals
        order = torch.randperm(len(normals), generator=stream(self.config.seed, "normals")).numpy()
        drawn = Picked(normals.array, normals.rows[np.sort(order[:most])])
        components = self._section.components
        # cells are kinds of their own, of which every image has many
        least = max(LEAST_NORMALS, components + 1 if self.kind is PooledMaps else 0)
        if len(drawn) < least:
            raise DataError(
                f"model.density_trunk=trained with {components} component(s) needs {least} normal training images "
                f"beside the {len(training.held)} that are held out, and {len(drawn)} are there; add images, or use "
                "model.normal_head=mlp"
            )
        self._training = Training(drawn, training.anomalies, training.held)

    def fit(self, ask: Ask) -> dict[str, float]:
        """Fit to the trunk as it is; gives figures.

        Raises NonFiniteError for a trunk that gives no numbers, or the same for all images.
        """
        if self._training is None:
            raise ValueError("the density has no images to fit; call prepare first")
        fit = self._fit_cells if self.kind is CellGrid else self._fit_pooled
        try:
            model, shrinkage, combination = fit(self._training, ask)
        except DataError:
            # of too few images `prepare` has said so: all features are equal
            raise NonFiniteError(
                f"the trained trunk gives all {len(self._training.normals)} normal images the same features, so that a "
                "density of them tells nothing; its training has failed, try a smaller optim.lr"
            ) from None
        wrong = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
        if wrong:
            raise NonFiniteError(f"the density of the trained trunk has values that are no numbers ({wrong[0]})")
        self._take(model)
        return {
            "normals": float(len(self._training.normals)),
            "shrinkage": shrinkage,
            "push_weight": combination.figures["push_weight"],
        }

    def forget(self) -> None:
        """What frozen blocks gave, since others were loaded."""
        self._trunk = TrunkMaps(self.detector, self.ends, self.kind)

    @property
    def fitted(self) -> nn.Module:
        """Raises ValueError before the first epoch."""
        if self.model is None:
            raise ValueError("the density has seen no images yet; run an epoch first")
        return self.model

    def score(self, images: np.ndarray) -> Scores:
        """Scores [N] of uint8 images [N, S, S, 3], as they stand."""
        return self.by_share(images, [cell_share(self.config)])[0]

    def by_share(self, images: np.ndarray, shares: Sequence[float]) -> Scores:
        """Scores [K, N] with each of K shares of the highest cells; those of pooled features are the same."""
        model = self.fitted
        parts = [np.zeros((len(shares), 0))]
        with torch.inference_mode():
            for one in (one[None] for features in self._trunk.walk(images) for one in features):
                scores = model.by_share(one, shares) if isinstance(model, CellScore) else model(one)
                parts.append(scores.double().expand(len(shares), -1).cpu().numpy())
        return np.concatenate(parts, axis=1)

    def cells(self, images: np.ndarray) -> Maps | None:
        """As of method `gaussian`: distances of cells, or what each adds to the score of pooled features."""
        model, size = self.fitted, images.shape[1]
        parts = [np.zeros((0, size, size), np.float32)]
        for image in images:
            maps = self._trunk.maps(image[None])
            if isinstance(model, CellScore):
                with torch.inference_mode():
                    parts.append(raised(model.bank(CellGrid.join(maps)).float(), size).cpu().numpy())
            else:
                assert isinstance(model, GaussianScore)
                features = PooledMaps.join([PooledMaps.part(one) for one in maps])
                parts.append(score_shares(model, maps, features, size))
        return np.concatenate(parts)

    def model_state(self) -> dict[str, Tensor]:
        fitted = {} if self.model is None else self.model.state_dict()
        return {f"{FIT}{name}": value for name, value in fitted.items()}

    def load_model_state(self, tensors: Mapping[str, Tensor]) -> None:
        fitted = {name.removeprefix(FIT): value for name, value in tensors.items()}
        try:
            if not all(name.startswith(FIT) for name in tensors):
                raise ValueError("it has a backbone of its own")
            model = self._blank(fitted) if fitted else None
            if model is not None:
                model.load_state_dict(fitted)
        except (RuntimeError, LookupError, ValueError) as problem:
            line = str(problem).splitlines()[-1].strip()
            raise CheckpointError(
                f"the model's density is none of model.density_trunk=trained with model.density_features="
                f"{self._section.features}: {line}"
            ) from None
        self.forget()
        self.model = None
        if model is not None:
            self._take(model)

    def _take(self, model: nn.Module) -> None:
        self.model = model.to(self.detector.device).requires_grad_(False).eval()

    def _blank(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        channels = sum(self.ends.values())
        if self.kind is CellGrid:
            return blank_cells(tensors, channels, self._section.cell_share)
        return blank_pooled(tensors, channels, 1)

    def _fit_pooled(self, training: Training, ask: Ask) -> tuple[nn.Module, float, Combination]:
        seed = self.config.seed
        known, labelled, held = (
            _rows(self._walk(getattr(training, name), ask, name), sum(self.ends.values()))
            for name in ("normals", "anomalies", "held")
        )
        density, shrinkage = fit_gaussian(known, self._section.components, seed)
        lengths = [np.linalg.norm(differences(density, rows), axis=1) for rows in (known, held)]
        combination = self._combination(density, (known, labelled, held), lengths)
        typical = typical_maps(training.normals, self._trunk.maps, seed, ask)
        return GaussianScore(density.cpu(), combination, typical.cpu(), 1), shrinkage, combination

    def _fit_cells(self, training: Training, ask: Ask) -> tuple[nn.Module, float, Combination]:
        section, seed = self._section, self.config.seed
        known, labelled = (
            look(_arrays(self._walk(images, ask, name)), np.zeros(len(images), np.intp), how)
            for name, images, how in (
                ("normals", training.normals, Looking(CANDIDATES, NEIGHBOURHOOD, seed, 1)),
                ("anomalies", training.anomalies, Looking(0, NEIGHBOURHOOD, seed)),
            )
        )
        assert known is not None
        pooled = np.zeros((0, known.pooled.shape[1])) if labelled is None else labelled.pooled
        bank, shrinkage = fit_cell_gaussian(known, np.zeros(len(training.normals), np.intp), section.components, seed)
        density, _ = fit_gaussian(known.pooled)
        some, lengths = self._lengths(bank, islice(self._each(training.normals, ask, "normals"), SOME_NORMALS))
        held, away = self._lengths(bank, self._each(training.held, ask, "held"))
        combination = self._combination(density, (some, pooled, held), [lengths, away])
        return CellScore(bank, density, combination, section.cell_share), shrinkage, combination

    def _each(self, images: Picked, ask: Ask, name: str) -> Iterator[Tensor]:
        """Maps [1, C, S, S] of each training image, on the CPU."""
        return (one[None] for part in self._walk(images, ask, name) for one in part.cpu())

    def _walk(self, images: Picked, ask: Ask, name: str) -> Iterator[Tensor]:
        """Features of a few training images at a time."""
        for features in self._trunk.walk(images, ask, name):
            if not bool(torch.isfinite(features).all()):
                raise NonFiniteError(
                    "the trained trunk gives features that are no finite numbers, which no density can be of; try a "
                    "smaller optim.lr"
                )
            yield features

    def _lengths(self, bank: nn.Module, features: Iterable[Tensor]) -> tuple[Rows, Rows]:
        """Pooled features [N, C] of maps [1, C, S, S], and the distances [N] of the highest cells."""
        rows, lengths = [], []
        with torch.inference_mode():
            for maps in features:
                rows.append(CellGrid.pooled(maps).double().numpy())
                lengths.append(highest(bank(maps), self._section.cell_share).numpy())
        return np.concatenate(rows), np.concatenate(lengths)

    def _combination(self, density: Gaussian, rows: tuple[Rows, Rows, Rows], lengths: Sequence[Rows]) -> Combination:
        """rows: pooled features of normals, anomalies and held-out normals; lengths [N], [H]: distances of normals."""
        known, labelled, held = rows
        along = directions(density, known, labelled, False)
        fitted, scale = (
            np.column_stack([away, differences(density, own) @ along])
            for away, own in zip(lengths, (known, held), strict=True)
        )
        none = np.zeros((0, 3))
        weights = choose_weights(HeldOut(scale, none, none), self._section.push, 0.0)
        return Combination.of(few_moments(scale, fitted), along, *weights)


def one_by_one(model: nn.Module, features: Tensor) -> Tensor:
    """Scores [N] of features [N, ...]: all cells of a batch whitened at once, in float64, would take gigabytes."""
    return torch.cat([model(one[None]) for one in features])


def _arrays(features: Iterator[Tensor]) -> Iterator[np.ndarray]:
    return (one.cpu().numpy() for one in features)


def _rows(features: Iterator[Tensor], channels: int) -> Rows:
    """Pooled means [N, C] from what PooledMaps gives."""
    parts = [PooledMaps.pooled(one).double().cpu().numpy() for one in features]
    return np.concatenate(parts) if parts else np.zeros((0, channels))
