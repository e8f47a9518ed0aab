"""How far a search's winner is from the best of all methods, on test images: its regret.

For each data set, partition and seed: every method that is asked for, as profile cpu has it, and the configuration
that a search chose, on the same test images and with the same labelled anomalies (ten). The regret is the AUROC of the
method with the best mean minus that of the winner, paired by partition (the mean of its seeds), with Student's 95 %
interval. It is too high rather than too low, since the best is chosen by the very images that it is measured on; and
the partitions share images, so that the interval is narrower than that of new images. A partition counts where all its
seeds are there. Methods that were trained on some partitions only are shown and cannot be the best. Partitions 11 to 15
are opened once, after all choices are written down: they are refused without --final. Resumable: a JSON line for each
training, without raw scores.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure_common import (
    PLAIN,
    RESULTS,
    OnCpuProfile,
    Row,
    Unscored,
    add_run_options,
    check_partitions,
    data_sets,
    images_of,
    load_average,
    methods_called,
    paired,
    print_table,
    run_resumable,
)

from sctune.config import read_yaml
from sctune.errors import ConfigError, SctuneError, nearest
from sctune.methods.named import method_names
from sctune.metrics.image_level import auroc

WINNER = "winner"
"""What a search chose."""


@dataclass(frozen=True)
class Job(OnCpuProfile):
    """One training. values: dotted, over the profile."""

    data: str
    method: str
    partition: int
    seed: int
    values: Mapping[str, Any]

    @property
    def about(self) -> tuple[object, ...]:
        return self.data, self.method, self.partition, self.seed


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """All trainings that are asked for; raises ConfigError for partitions that are not to be looked at yet."""
    check_partitions(options.partitions, options.final)
    own, sets = methods_called(options.methods), data_sets(options.sets, options.data)
    winners = _winners(options, sets)
    return [
        Job(
            data,
            method,
            partition,
            seed,
            {"runtime.device": "cpu", **fields, **sets[data], "data.partition_seed": partition, "seed": seed},
        )
        for data in sets
        for partition in options.partitions
        for seed in options.seeds
        for method, fields in (own | ({WINNER: winners[data]} if data in winners else {})).items()
    ]


def _winners(options: argparse.Namespace, sets: Mapping[str, object]) -> Mapping[str, Mapping[str, Any]]:
    """Data set -> what its search chose; raises ConfigError for other names than those of data sets."""
    found = {} if options.winners is None else read_yaml(options.winners)
    known = data_sets(options.sets, None)
    for name in found:
        if name not in known:
            raise ConfigError(f"--winners {options.winners}: {name!r} is no data set; {nearest(name, known)}")
    absent = [name for name in sets if name not in found]
    if found and absent:
        raise ConfigError(
            f"--winners {options.winners}: nothing is there for {absent[0]}; add it, or choose with --data"
        )
    return found


def train(job: Job) -> Row:
    """One training; value: its AUROC on the test images, NaN where it failed."""
    about = {
        "key": job.key,
        "data": job.data,
        "method": job.method,
        "partition": job.partition,
        "seed": job.seed,
    }
    try:
        return about | _trained(job)
    except SctuneError as problem:
        # the others go on; without this line in the file it is tried again
        return about | {"value": math.nan, "problem": str(problem)}


def _trained(job: Job) -> Row:
    trainer = Unscored(job.config)
    seconds = sum(report.metrics["seconds"] for report in trainer.fit())
    labels = [file.label for file in trainer.split.test]
    return {
        "value": auroc(labels, trainer.method.score(images_of(trainer, trainer.split.test))),
        "seconds": round(seconds, 2),
        "load": load_average(),
    }


def show(options: argparse.Namespace, jobs: Sequence[Job], rows: Sequence[Row]) -> None:
    """A table for each data set, the best first, and the winner's regret; with the methods of earlier calls."""
    known = [name for name in dict.fromkeys(row["method"] for row in rows) if name in (PLAIN, *method_names())]
    whole_grid = argparse.Namespace(**vars(options) | {"methods": [*dict.fromkeys((*options.methods, *known))]})
    wanted, partitions = {job.key for job in jobs_of(whole_grid)}, {job.partition for job in jobs}
    for row in rows:
        if row["key"] in wanted and "problem" in row:
            print(f"{row['key']} failed: {row['problem']}")
    for data in dict.fromkeys(job.data for job in jobs):
        mine = [row for row in rows if row["data"] == data and row["key"] in wanted and "problem" not in row]
        names = dict.fromkeys(row["method"] for row in mine)
        means = {name: found for name in names if (found := _by_partition(mine, name, options.seeds))}
        ranked = sorted(means, key=lambda name: -np.mean(list(means[name].values())))
        whole = [name for name in ranked if name != WINNER and len(means[name]) == len(partitions)]
        if not ranked:
            continue
        best = whole[0] if whole else None
        print(f"\n{data}: test AUROC, mean over partitions of the mean over seeds\n")
        print_table(
            ["method", "partitions", "trainings", "AUROC", f"- {best or 'best'}"],
            [_line(name, means, best, sum(row["method"] == name for row in mine)) for name in ranked],
        )
        if best is None:
            print("\nno regret: no method has all partitions")
        elif WINNER in means:
            lacking = len(partitions) - len(means[WINNER])
            so_far = f"; so far, {lacking} of {len(partitions)} partitions are missing" if lacking else ""
            print(f"\nregret: {_gap(means[best], means[WINNER])}{so_far}")


def _by_partition(rows: Sequence[Row], method: str, seeds: Sequence[int]) -> dict[int, float]:
    """Mean over the seeds of each partition that has all of them."""
    found: dict[int, dict[int, float]] = {}
    for row in rows:
        if row["method"] == method:
            found.setdefault(row["partition"], {})[row["seed"]] = row["value"]
    return {one: float(np.mean(list(values.values()))) for one, values in found.items() if set(values) == set(seeds)}


def _line(name: str, means: Mapping[str, Mapping[int, float]], best: str | None, trainings: int) -> list[str]:
    values = means[name]
    mean = f"{np.mean(list(values.values())):.4f}"
    return [name, str(len(values)), str(trainings), mean, "" if best in (name, None) else _gap(values, means[best])]


def _gap(values: Mapping[int, float], against: Mapping[int, float]) -> str:
    """Difference over the partitions that both have."""
    shared = {partition: value for partition, value in values.items() if partition in against}
    gaps = {round(value - against[partition], 12) for partition, value in shared.items()}
    if len(gaps) < 2:
        # no interval: one partition, or they do not vary
        return f"{gaps.pop():+.4f}" if gaps else "-"
    found = paired(shared, dict(against), False)
    low, high = found["interval"]
    return f"{found['difference']:+.4f} ({low:+.4f} to {high:+.4f})"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--sets", type=Path, help="YAML: name of each further data set -> its fields")
    found.add_argument("--winners", type=Path, help="YAML: name of a data set -> dotted fields over profile cpu")
    found.add_argument("--data", nargs="+", help="names of data sets; default: all")
    found.add_argument("--methods", nargs="+", required=True, help="names, default for the profile as it is")
    add_run_options(found, (101, 102), RESULTS / "regret_rows.jsonl")
    return found


def main() -> None:
    options = parser().parse_args()
    run_resumable(options, jobs_of, train, partial(show, options))


if __name__ == "__main__":
    main()
