"""The selection set of a task: the images that decide between trials, scored after every epoch (DESIGN 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from sctune.augment.proxy import make_proxy_set
from sctune.data.images import CachedImages
from sctune.data.split import Split, selection_subset
from sctune.metrics.objective import AP, AUROC, Objective
from sctune.metrics.ties import rounded

PROXY_SETS_KEPT = 8

Scorer = Callable[[np.ndarray], np.ndarray]
"""uint8 images [N, S, S, 3] -> scores [N]."""


@dataclass(frozen=True)
class SelectionSet:
    """paths [N], labels [N] and images [N, S, S, 3] of held-out files; proxy: maker -> altered normals.

    objective: what decides between trials.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    images: np.ndarray
    proxy: dict[str, np.ndarray]
    objective: Objective = AUROC

    def evaluate(self, scorer: Scorer) -> tuple[dict[str, float], dict[str, list[float]]]:
        """Metrics and raw scores ("" for the files, the maker's name for its images).

        Real anomalies give AUROC and average precision, and the objective's figure where that is another; each maker
        that figure against the same normals, averaged equally. Where both are there (hard setting) the objective is
        the mean of the two.
        """
        metric, figure = self.objective.metric, self.objective.value
        scores = scorer(self.images)
        raw = {"": scores.tolist()}
        metrics: dict[str, float] = {}
        parts = []
        if self.labels.any():
            metrics[f"{AUROC.metric}_real"] = AUROC.value(self.labels, scores)
            metrics[AP.metric] = AP.value(self.labels, scores)
            if self.objective is not AUROC:
                metrics[f"{metric}_real"] = figure(self.labels, scores)
            parts.append(metrics[f"{metric}_real"])
        if self.proxy:
            normal = scores[self.labels == 0]
            for name, images in self.proxy.items():
                altered = scorer(images)
                raw[name] = altered.tolist()
                labels = np.r_[np.zeros(len(normal)), np.ones(len(altered))].astype(int)
                metrics[f"{metric}_{name}"] = figure(labels, np.r_[normal, altered])
            parts.append(float(np.mean([metrics[f"{metric}_{name}"] for name in self.proxy])))
        metrics[metric] = rounded(float(np.mean(parts)))
        return metrics, raw


def build_selection(
    split: Split, cached: CachedImages, limit: int | None, partition_seed: int, objective: Objective = AUROC
) -> SelectionSet:
    """The selection set of a split: at most `limit` files per class, the same for every trial of a study."""
    chosen = [file for file in selection_subset(split, limit, partition_seed) if file.path in cached.index]
    paths = tuple(file.path for file in chosen)
    labels = np.array([file.label for file in chosen], int)
    images = cached.array[[cached.index[path] for path in paths]]
    proxy = {}
    if split.makers:
        normal = labels == 0
        names = [path for path, label in zip(paths, labels, strict=True) if label == 0]
        proxy = _proxy_images(images[normal], names, partition_seed)
    return SelectionSet(paths, labels, images, proxy, objective)


_made: dict[str, dict[str, np.ndarray]] = {}


def _proxy_images(images: np.ndarray, names: list[str], seed: int) -> dict[str, np.ndarray]:
    """The proxy set of these images; the latest few are kept, since an actor's trials share them."""
    key = sha256(images.tobytes() + repr((names, seed)).encode()).hexdigest()
    if key not in _made:
        while len(_made) >= PROXY_SETS_KEPT:
            _made.pop(next(iter(_made)))
        _made[key] = make_proxy_set(images, names, seed)
    return _made[key]
