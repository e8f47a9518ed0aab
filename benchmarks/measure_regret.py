"""How far a search's winner is from the best of all methods, on test images: its regret.

For each data set, partition and seed: every method that is asked for, as profile cpu has it, and the configuration
that a search chose, on the same test images and with the same labelled anomalies (ten). The regret is the AUROC of the
method with the best mean minus that of the winner, paired by partition (the mean of its seeds), with Student's 95 %
interval. Partitions 11 to 15 are opened once, after all choices are written down: they are refused without --final.
Resumable: a JSON line for each training, without raw scores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure_common import (
    RESULTS,
    Row,
    Unscored,
    add_run_options,
    check_partitions,
    digest_of,
    images_of,
    load_average,
    paired,
    print_table,
    run_resumable,
)

from sctune.config import TrialConfig, load_profile, read_yaml
from sctune.errors import ConfigError, nearest
from sctune.methods.named import method_names, method_values
from sctune.metrics.image_level import auroc

PLAIN, WINNER = "default", "winner"
"""Profile cpu as it is; what a search chose."""


@dataclass(frozen=True)
class Job:
    """One training. values: dotted, over the profile."""

    data: str
    method: str
    partition: int
    seed: int
    values: Mapping[str, Any]

    @property
    def config(self) -> TrialConfig:
        return load_profile("cpu").override(dict(self.values))

    @property
    def key(self) -> str:
        return f"{self.data}:{self.method}:{self.partition}:{self.seed}:{digest_of(self.config)}"


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """All trainings that are asked for; raises ConfigError for partitions that are not to be looked at yet."""
    check_partitions(options.partitions, options.final)
    names = (PLAIN, *method_names())
    for name in options.methods:
        if name not in names:
            raise ConfigError(f"--methods {name!r}: no such method; {nearest(name, names)}")
    sets = {"elpv": {"data.source": "elpv"}} | ({} if options.sets is None else read_yaml(options.sets))
    winners = {} if options.winners is None else read_yaml(options.winners)
    own = {name: {} if name == PLAIN else method_values(name, "cpu") for name in options.methods}
    return [
        Job(
            data,
            method,
            partition,
            seed,
            {"runtime.device": "cpu", **fields, **sets[data], "data.partition_seed": partition, "seed": seed},
        )
        for data in options.data or sets
        for partition in options.partitions
        for seed in options.seeds
        for method, fields in (own | ({WINNER: winners[data]} if data in winners else {})).items()
    ]


def train(job: Job) -> Row:
    """One training; value: its AUROC on the test images."""
    trainer = Unscored(job.config)
    seconds = sum(report.metrics["seconds"] for report in trainer.fit())
    labels = [file.label for file in trainer.split.test]
    return {
        "key": job.key,
        "data": job.data,
        "method": job.method,
        "partition": job.partition,
        "seed": job.seed,
        "value": auroc(labels, trainer.method.score(images_of(trainer, trainer.split.test))),
        "seconds": round(seconds, 2),
        "load": load_average(),
    }


def show(jobs: Sequence[Job], rows: Sequence[Row]) -> None:
    """A table for each data set, the best first, and the winner's regret."""
    wanted = {job.key for job in jobs}
    for data in dict.fromkeys(job.data for job in jobs):
        mine = [row for row in rows if row["key"] in wanted and row["data"] == data]
        means = {method: _by_partition(mine, method) for method in dict.fromkeys(row["method"] for row in mine)}
        if not means:
            continue
        ranked = sorted(means, key=lambda name: -np.mean(list(means[name].values())))
        best = next((name for name in ranked if name != WINNER), WINNER)
        print(f"\n{data}: test AUROC, mean over partitions of the mean over seeds\n")
        print_table(
            ["method", "partitions", "trainings", "AUROC", f"- {best}"],
            [_line(name, means, best, sum(row["method"] == name for row in mine)) for name in ranked],
        )
        if WINNER in means:
            print(f"\nregret: {_gap(means[best], means[WINNER])}")


def _by_partition(rows: Sequence[Row], method: str) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["method"] == method:
            found.setdefault(row["partition"], []).append(row["value"])
    return {partition: float(np.mean(values)) for partition, values in found.items()}


def _line(name: str, means: Mapping[str, Mapping[int, float]], best: str, trainings: int) -> list[str]:
    values = means[name]
    mean = f"{np.mean(list(values.values())):.4f}"
    return [name, str(len(values)), str(trainings), mean, "" if name == best else _gap(values, means[best])]


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
    run_resumable(parser().parse_args(), jobs_of, train, show)


if __name__ == "__main__":
    main()
