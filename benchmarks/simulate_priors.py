"""How many trainings a prior saves when it is right, and costs when it is wrong: simulated, nothing is trained.

Cheap landscapes over shipped spaces (without their start points) stand for the objective; the sampler, the priors and
the look-behind are the real ones. A landscape is drawn anew for each seed, scaled to a range of 1 over POINTS random
points where nothing is noisy, else to a standard deviation of .03 (what configurations differ by) beside that of a
seed. Counted are the trainings until the first configuration whose true value is within .01 of the best of the random
points.

- peak: a quadratic around one place; each parameter matters .6 times as much as the next more important one.
- ridge: sharper, and along directions that mix all parameters.
- two: a narrow best place, and a broad one that is .8 times as good somewhere else.

Priors: near5 and near15, the best random point with each number moved by a standard deviation of 5 and 15 % of its
range; good, the best of 25 random points; random, any point; wrong, one of the worst twentieth; alike and unlike,
earlier studies of EARLIER noisy trials, of the same landscape with its best place moved by a standard deviation of 10 %
in each direction, and of another landscape altogether. All of it is seeded.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import Pool

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from sctune.config import load_profile
from sctune.search.plan.earlier import prior_of_trials
from sctune.search.space.definition import Space, Values, load_space
from sctune.search.space.scale import from_unit, unit_cell
from sctune.search.suggest.beliefs import Centre, Prior, start_points
from sctune.search.suggest.samplers import make_sampler
from sctune.search.suggest.suggester import Suggester

POINTS = 20_000
WITHIN = 0.01
TRUE_SD = 0.03
EARLIER = 30
BEHIND = 2
"""What a search on one slot or two has."""
PRIORS = ("none", "near5", "near15", "good", "random", "wrong", "alike", "unlike")
LANDSCAPES = ("peak", "ridge", "two")


@dataclass(frozen=True)
class Job:
    """One simulated search."""

    sampler: str
    space: str
    landscape: str
    noise: float
    prior: str
    seed: int
    cap: int


@cache
def space_of(name: str) -> Space:
    return replace(load_space(name, load_profile("cpu")), start=())


@cache
def random_points(name: str) -> tuple[list[Values], np.ndarray]:
    """POINTS of a space, and their places: (POINTS, parameters)."""
    space, rng = space_of(name), np.random.default_rng(0)
    points = [_random_point(space, rng) for _ in range(POINTS)]
    return points, np.array([places(space, point) for point in points])


def _random_point(space: Space, rng: np.random.Generator) -> Values:
    values: Values = {}
    for parameter in space.parameters:
        if space.is_active(parameter, values):
            distribution = parameter.distribution()
            if isinstance(distribution, CategoricalDistribution):
                values[parameter.name] = distribution.choices[rng.integers(len(distribution.choices))]
            else:
                values[parameter.name] = parameter.decode(from_unit(distribution, rng.random()))
    return values


def places(space: Space, values: Mapping[str, object]) -> np.ndarray:
    """(parameters,): a point in [0, 1]; a choice by its number, what is not active in the middle."""
    found = []
    for parameter in space.parameters:
        if parameter.name not in values:
            found.append(0.5)
            continue
        stored, distribution = parameter.encode(values[parameter.name]), parameter.distribution()
        if isinstance(distribution, CategoricalDistribution):
            found.append(distribution.choices.index(stored) / max(len(distribution.choices) - 1, 1))
        else:
            found.append(sum(unit_cell(distribution, stored)) / 2)
    return np.array(found)


class Landscape:
    """True values over a space."""

    def __init__(self, name: str, kind: str, seed: int, moved: float = 0.0) -> None:
        self.kind = kind
        rng = np.random.default_rng([seed, 1])
        count = len(space_of(name).parameters)
        self.weights = rng.permutation(0.6 ** np.arange(count))
        self.best_place, self.other_place = rng.uniform(0.15, 0.85, count), rng.uniform(0.1, 0.9, count)
        self.turn = np.linalg.qr(rng.normal(size=(count, count)))[0]
        # what each seed draws stays the same with and without
        self.best_place = np.clip(self.best_place + moved * rng.normal(size=count), 0.0, 1.0)
        self.values = self(random_points(name)[1])
        self.best = float(self.values.max())

    def __call__(self, where: np.ndarray) -> np.ndarray:
        """(points,) of (points, parameters)."""
        away = where - self.best_place
        if self.kind == "ridge":
            return -(np.abs(away @ self.turn.T) ** 1.2) @ self.weights
        squares = away**2 @ self.weights
        if self.kind == "peak":
            return -squares
        return np.exp(-squares / 0.08) + 0.8 * np.exp(-((where - self.other_place) ** 2 @ self.weights) / 0.2)


def prior_of(job: Job, landscape: Landscape) -> list[Prior]:
    if job.prior == "none":
        return []
    if job.prior in ("alike", "unlike"):
        return [_earlier(job)]
    points, rng = random_points(job.space)[0], np.random.default_rng([job.seed, 2])
    order = np.argsort(landscape.values)
    if job.prior.startswith("near"):
        values = _moved(space_of(job.space), points[order[-1]], float(job.prior.removeprefix("near")) / 100, rng)
    elif job.prior == "good":
        drawn = rng.choice(POINTS, 25, replace=False)
        values = points[drawn[landscape.values[drawn].argmax()]]
    else:
        values = points[order[rng.integers(POINTS if job.prior == "random" else POINTS // 20)]]
    return [Prior(kind="file", name="prior", centres=(Centre(values=values),))]


def _earlier(job: Job) -> Prior:
    moved = 0.1 if job.prior == "alike" else 0.0
    landscape = Landscape(job.space, job.landscape, job.seed + (0 if moved else 10_000), moved)
    space, noise = space_of(job.space), np.random.default_rng([job.seed, 4])
    suggester = Suggester(space, make_sampler("tpe", job.seed + 1, space=space), job.seed + 1)
    scale = TRUE_SD / landscape.values.std()
    for _ in range(EARLIER):
        trial = suggester.ask()
        assert trial is not None
        value = float(landscape(places(space, suggester.params(trial.number))[None])[0]) * scale
        suggester.tell(trial.number, TrialState.COMPLETE, value + TRUE_SD * noise.normal())
    return prior_of_trials(job.prior, suggester.trials(), 1.0, space, space)


def _moved(space: Space, point: Values, by: float, rng: np.random.Generator) -> Values:
    moved = {}
    for name, value in point.items():
        parameter, distribution = space.by_name[name], space.by_name[name].distribution()
        if isinstance(distribution, CategoricalDistribution):
            moved[name] = value
            continue
        place = sum(unit_cell(distribution, parameter.encode(value))) / 2 + by * rng.normal()
        moved[name] = parameter.decode(from_unit(distribution, min(max(place, 0.0), 1.0)))
    return moved


def trainings(job: Job) -> int:
    """Until one is within; cap + 1 where none is."""
    space, landscape = space_of(job.space), Landscape(job.space, job.landscape, job.seed)
    priors = prior_of(job, landscape)
    sampler = make_sampler(job.sampler, job.seed, space=space, priors=priors)
    suggester = Suggester(space, sampler, job.seed, first=start_points(space, priors), behind=BEHIND)
    scale = TRUE_SD / landscape.values.std() if job.noise else 1 / np.ptp(landscape.values)
    noise = np.random.default_rng([job.seed, 3])
    running: list[tuple[int, float]] = []
    for count in range(1, job.cap + 1):
        trial = suggester.ask()
        if trial is None:
            break
        value = float(landscape(places(space, suggester.params(trial.number))[None])[0])
        if (landscape.best - value) * scale <= WITHIN:
            return count
        running.append((trial.number, value * scale + job.noise * noise.normal()))
        if len(running) == BEHIND:
            number, told = running.pop(0)
            suggester.tell(number, TrialState.COMPLETE, told)
    return job.cap + 1


def jobs_of(options: argparse.Namespace) -> list[Job]:
    return [
        Job(sampler, space, landscape, noise, prior, seed, options.cap)
        for sampler in options.samplers
        for space in options.spaces
        for landscape in options.landscapes
        for noise in options.noise
        for prior in options.priors
        for seed in range(options.seeds)
    ]


def table(options: argparse.Namespace, found: Mapping[Job, int]) -> list[str]:
    """Medians over seeds, a line for each setting, and over all settings of a sampler; > cap where most found none."""
    head = ["sampler", "space", "landscape", "noise", *options.priors]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    groups = dict.fromkeys((job.sampler, job.space, job.landscape, job.noise) for job in found)
    for group in groups:
        own = [[n for job, n in found.items() if group == _group(job) and job.prior == one] for one in options.priors]
        lines.append(f"| {' | '.join([*map(str, group), *_cells([float(np.median(n)) for n in own], options.cap)])} |")
    for sampler in options.samplers:
        whole = [
            float(np.median([n for job, n in found.items() if job.sampler == sampler and job.prior == one]))
            for one in options.priors
        ]
        lines.append(f"| {sampler} | all | median of all searches | | {' | '.join(_cells(whole, options.cap))} |")
        logs = []
        for one in options.priors:
            ratios = []
            for group in (g for g in groups if g[0] == sampler):
                pair = [
                    np.median([n for job, n in found.items() if group == _group(job) and job.prior == name])
                    for name in (one, options.priors[0])
                ]
                ratios.append(math.log(pair[0] / pair[1]))
            logs.append(math.exp(float(np.mean(ratios))))
        lines.append(f"| {sampler} | all | geometric mean of ratios | | {' | '.join(f'{one:.2f}' for one in logs)} |")
    return lines


def _group(job: Job) -> tuple[str, str, str, float]:
    return job.sampler, job.space, job.landscape, job.noise


def _cells(medians: Sequence[float], cap: int) -> list[str]:
    first = medians[0]
    return [f"{'>' if one > cap else ''}{min(one, cap):g} ({one / first:.2f})" for one in medians]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", nargs="+", default=["tpe"])
    parser.add_argument("--spaces", nargs="+", default=["threshold_patch", "full"])
    parser.add_argument("--landscapes", nargs="+", default=list(LANDSCAPES), choices=LANDSCAPES)
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.03], help="Standard deviation of a seed.")
    parser.add_argument("--priors", nargs="+", default=list(PRIORS), help="The first is what ratios are to.")
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--cap", type=int, default=100, help="Trainings of a search.")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    jobs, began = jobs_of(options), time.perf_counter()
    for name in options.spaces:
        random_points(name)
    with Pool(options.processes) as pool:
        found = dict(zip(jobs, pool.map(trainings, jobs, chunksize=4), strict=True))
    print("\n".join(table(options, found)))
    print(f"{len(jobs)} searches in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
