"""Is racing over replicates worth it? The rule `race` on drawn values, against searches that spend as many trainings.

Configurations and seeds as the mixed model has them: a value is what the configuration adds (SD --spread), what the
seed does to all (a share of --error), and the rest of --error. Shown is how often the chosen configuration is within
.01 of the best of all that could have been tried, with the 95 % interval of Clopper and Pearson. No training, no Ray.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import numpy as np
from measure_common import print_table
from scipy.stats import binomtest

from sctune.search.rules.base import Decision
from sctune.search.rules.race import Race
from sctune.search.rules.registry import make_rule

NEAR = 0.01
CONFIGURATIONS = 40
EPOCHS = 1

Choose = Callable[[np.ndarray, int], int]
"""Values [configuration, seed] and a number of trainings -> the configuration that is chosen."""


def raced(replicates: int) -> Choose:
    def choose(values: np.ndarray, trainings: int) -> int:
        trials = round(trainings * 2 / 3)
        return race(values[:trials, :replicates])

    return choose


def race(values: np.ndarray) -> int:
    """The best full run of a race, one trial at a time, told to the rule as a search tells it."""
    trials, replicates = values.shape
    rule = make_rule("race", EPOCHS, 1, 2, 0, replicates=replicates, trials=trials)
    assert isinstance(rule, Race)
    begun, full = dict.fromkeys(range(trials), 0), {}
    new = iter(range(trials))
    while True:
        named = list(rule.promote())
        if not named and (number := next(new, None)) is not None:
            rule.join(number, "")
            named = [number]
        named = named or list(rule.promote_last())
        if not named:
            return max(full, key=lambda number: full[number])
        for number in named:
            begun[number] += 1
            mean = float(values[number, : begun[number]].mean())
            if begun[number] == replicates:
                full[number] = mean
                rule.completed(number, mean, None)
            elif rule.decide(number, begun[number], mean) is Decision.STOP:
                rule.ended(number, failed=False)


def single(values: np.ndarray, trainings: int) -> int:
    """Best of as many configurations with one seed."""
    return int(np.argmax(values[:trainings, 0]))


def fixed(seeds: int) -> Choose:
    """As many seeds each."""

    def choose(values: np.ndarray, trainings: int) -> int:
        return int(np.argmax(values[: trainings // seeds, :seeds].mean(axis=1)))

    return choose


def shares(ways: Mapping[str, Choose], trainings: int, draw: Callable[[], np.ndarray], searches: int) -> dict[str, str]:
    hits = dict.fromkeys(ways, 0)
    for _ in range(searches):
        drawn = draw()
        true, values = drawn[:, 0], drawn[:, 1:]
        for name, choose in ways.items():
            hits[name] += bool(true[choose(values, trainings)] >= true.max() - NEAR)
    return {name: share_text(found, searches) for name, found in hits.items()}


def share_text(found: int, of: int) -> str:
    interval = binomtest(found, of).proportion_ci(0.95)
    return f"{100 * found / of:.0f} ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def drawing(rng: np.random.Generator, spread: float, error: float, shared: float) -> Callable[[], np.ndarray]:
    """[configuration, 1 + seed]: the true value, then what each seed gives."""

    def draw() -> np.ndarray:
        true = rng.normal(0, spread, (CONFIGURATIONS, 1))
        seeds = rng.normal(0, error * np.sqrt(shared), (1, 12))
        return np.hstack([true, true + seeds + rng.normal(0, error * np.sqrt(1 - shared), (CONFIGURATIONS, 12))])

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spread", type=float, nargs="+", default=[0.015, 0.03], help="SD among configurations")
    parser.add_argument("--error", type=float, default=0.03, help="SD from seed to seed")
    parser.add_argument("--shared", type=float, nargs="+", default=[0.3, 0.6], help="share of its variance, in [0, 1)")
    parser.add_argument("--trainings", type=int, nargs="+", default=[12, 24, 36, 60])
    parser.add_argument("--replicates", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--searches", type=int, default=1000)
    options = parser.parse_args()
    races = {f"race, {count} replicates": raced(count) for count in options.replicates}
    ways: dict[str, Choose] = {"one seed": single, "three seeds": fixed(3), **races}
    rows = []
    for spread in options.spread:
        for shared in options.shared:
            for trainings in options.trainings:
                draw = drawing(np.random.default_rng(0), spread, options.error, shared)
                found = shares(ways, trainings, draw, options.searches)
                rows.append([f"{spread:g}", f"{shared:g}", str(trainings), *found.values()])
    print_table(["SD of configurations", "shared", "trainings", *ways], rows)


if __name__ == "__main__":
    main()
