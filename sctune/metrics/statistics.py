"""Spread and uncertainty of test numbers: three standard deviations (METHODS 5.3) and bootstrap intervals.

All standard deviations are of the population (divisor n): only so do the paper's own columns agree with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sctune.metrics.resampling import weighted_auroc

Array = np.ndarray

RESAMPLES = 2000
LEVEL = 0.95
_CELLS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Spread:
    """Standard deviations of AUROC values over subsets (rows of a group) and trials (seeds); None: only one value.

    trials: of the mean over the subsets, over trials; subsets: of the mean over trials, over subsets; pooled: over all
    values together, which is what the paper prints beside its own method.
    """

    trials: float | None
    subsets: float | None
    pooled: float | None


def spread(values: Sequence[Sequence[float]]) -> Spread:
    """values: one list of trials per subset, AUROC in [0, 1]; all of the same length, else ValueError."""
    table = np.array(values, dtype=np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"one value per subset and trial is needed, got {[len(row) for row in values]} trials")
    return Spread(_std(table.mean(axis=0)), _std(table.mean(axis=1)), _std(table.ravel()))


def _std(values: Array) -> float | None:
    return float(values.std()) if len(values) > 1 else None


def pooled_std(means: ArrayLike, stds: ArrayLike) -> float:
    """Standard deviation over all trials of all subsets, from each subset's mean and standard deviation [S]."""
    of_means, of_trials = np.asarray(means, np.float64), np.asarray(stds, np.float64)
    return math.sqrt(float((of_trials**2).mean() + of_means.var()))


@dataclass(frozen=True)
class Scores:
    """Test scores of one trained model: paths [N], labels [N] in {0, 1}, scores [N].

    pool: data set and category, which with the path names an image; subset: the row of the table it belongs to; seed:
    of the training run.
    """

    pool: str
    subset: str
    paths: tuple[str, ...]
    labels: Array
    scores: Array
    seed: int = 0


def bootstrap_interval(runs: Sequence[Scores], resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean AUROC (over the runs of a subset, then over subsets).

    Images are resampled within their class. One that several runs are tested on is drawn equally often in all of
    them: seeds and rows share most test images, and drawing them apart would make the interval too narrow. What a
    new training run would change is not in it; see `spread` for that, and `seeded_interval`.
    """
    subsets = [run.subset for run in runs]
    weights = np.array([1 / (len(set(subsets)) * subsets.count(run.subset)) for run in runs])
    values = resampled_aurocs(runs, resamples, np.random.default_rng(seed))
    held = np.where(np.isfinite(values), weights, 0.0)
    with np.errstate(invalid="ignore"):
        means = (np.nan_to_num(values) * held).sum(axis=1) / held.sum(axis=1)
    return _percentiles(means)


def resampled_aurocs(runs: Sequence[Scores], resamples: int, random: np.random.Generator) -> Array:
    """AUROC [B, runs] of every run in every resample of the images, which all runs share (`bootstrap_interval`)."""
    images = _images(runs)
    columns = [_columns(run, images) for run in runs]
    step = max(1, _CELLS_AT_ONCE // sum(map(len, images.values())))
    blocks = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = {key: _draw(len(names), count, random) for key, names in images.items()}
        parts = []
        for run, (normal, anomalous) in zip(runs, columns, strict=True):
            counts = np.where(run.labels == 1, drawn[run.pool, 1][:, anomalous], drawn[run.pool, 0][:, normal])
            parts.append(weighted_auroc(run.labels, run.scores, counts))
        blocks.append(np.stack(parts, axis=1))
    return np.concatenate(blocks)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval; seeds: value of each; std: over them (population), None for one.

    p: two-sided, that it is 0; of differences only.
    """

    value: float
    low: float
    high: float
    seeds: dict[int, float]
    std: float | None
    p: float | None = None


def seeded_interval(runs: Sequence[Scores], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean AUROC (over the runs of a subset, over subsets, over seeds) with a nested bootstrap interval.

    Seeds are resampled first, then the images within their class; an image that several seeds are tested on is drawn
    equally often in all of them. So what a new training run and new images would change is in it.
    """
    drawn = resampled_aurocs(runs, resamples, np.random.default_rng(seed))
    return _nested(runs, np.array([_plain_auroc(run) for run in runs]), drawn, seed)


def seeded_difference(
    first: Sequence[Scores], second: Sequence[Scores], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean AUROC of `first` minus that of `second`, paired: by seed and subset, and on the same resampled images.

    Both must hold the same seeds and subsets in the same order, else ValueError. p: share of resamples on the other
    side of 0, doubled.
    """
    if [(run.seed, run.subset, run.paths) for run in first] != [(run.seed, run.subset, run.paths) for run in second]:
        raise ValueError("paired runs need the same seeds, subsets and images in the same order")
    both = resampled_aurocs([*first, *second], resamples, np.random.default_rng(seed))
    plain = np.array([_plain_auroc(a) - _plain_auroc(b) for a, b in zip(first, second, strict=True)])
    return _nested(first, plain, both[:, : len(first)] - both[:, len(first) :], seed, test=True)


def _nested(runs: Sequence[Scores], plain: Array, drawn: Array, seed: int, test: bool = False) -> Estimate:
    """plain: value of each run [R]; drawn: in each resample of the images [B, R]."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    share = np.zeros((len(runs), len(seeds)))
    for row, run in enumerate(runs):
        mine = [other.subset for other in runs if other.seed == run.seed]
        share[row, seeds.index(run.seed)] = 1 / (len(set(mine)) * mine.count(run.subset))
    of_seeds = plain @ share
    # a resample without a class says nothing; with hundreds of images there is none
    means = drawn[np.isfinite(drawn).all(axis=1)] @ share
    random = np.random.default_rng(seed + 1)
    times = random.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=len(means))
    values = (means * times).sum(axis=1) / len(seeds)
    low, high = _percentiles(values)
    p = min(1.0, 2 * max(1 / len(values), min((values <= 0).mean(), (values >= 0).mean()))) if test else None
    return Estimate(
        value=float(of_seeds.mean()),
        low=low,
        high=high,
        seeds=dict(zip(seeds, of_seeds.tolist(), strict=True)),
        std=_std(of_seeds),
        p=None if p is None else float(p),
    )


def _plain_auroc(run: Scores) -> float:
    return float(weighted_auroc(run.labels, run.scores, np.ones((1, len(run.scores)), int))[0])


def _percentiles(values: Array) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return float(low), float(high)


def _images(runs: Sequence[Scores]) -> dict[tuple[str, int], dict[str, int]]:
    """Pool and label -> number of each image among those that any run is tested on."""
    images: dict[tuple[str, int], dict[str, int]] = {}
    for run in runs:
        for path, label in zip(run.paths, run.labels.tolist(), strict=True):
            known = images.setdefault((run.pool, label), {})
            known.setdefault(path, len(known))
    return images


def _columns(run: Scores, images: dict[tuple[str, int], dict[str, int]]) -> tuple[Array, Array]:
    """Number of each of a run's images among the normal and among the anomalous ones; any where it is not one."""
    normal, anomalous = (np.array([images[run.pool, label].get(path, 0) for path in run.paths]) for label in (0, 1))
    return normal, anomalous


def _draw(size: int, resamples: int, random: np.random.Generator) -> Array:
    """How often each of `size` images is drawn, [resamples, size]; every row sums up to `size`."""
    picks = random.integers(size, size=(resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(picks.ravel(), minlength=resamples * size).reshape(resamples, size)
