"""What a candidate configuration reaches on test pools, beside the heads alone and the methods that train nothing.

For each goal (a data set and a task of it), partition and seed: the candidate, fused with the Gaussian and by its heads
alone, profile cpu without a density (its default when the goals were set), and both references, on the same test images
and with the same labelled anomalies. --heads: another configuration, whose heads are to be good by themselves.
Partitions 11 to 15 are opened once, after all choices are written down: they are refused without --final. Resumable: a
JSON line for each training, with its raw scores. Differences are paired by partition (the mean of its seeds), with
Student's 95 % interval.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure_common import (
    RESULTS,
    OnCpuProfile,
    Row,
    Unscored,
    add_run_options,
    check_partitions,
    images_of,
    load_average,
    paired,
    print_table,
    run_resumable,
)

from sctune.config import read_yaml
from sctune.data.split import Files
from sctune.errors import ConfigError, nearest
from sctune.metrics.image_level import auroc
from sctune.metrics.threshold import conformal_threshold, escape_rate, false_alarm_rate
from sctune.train.trainer import Trainer

RATE = 0.01
CANDIDATE, BY_HEADS, DEFAULT = "candidate", "for its heads", "default"
REFERENCES = ("gaussian", "patch_bank")
FUSED, HEADS = "fused", "heads"
MIDDLE = re.compile(r"_1\.\w+$")
"""Of a KolektorSDD part the crop in which nearly all cracks lie."""

ALL = {"data.anomalies": "all", "data.selection": "proxy"}
GOALS: dict[str, tuple[str, dict[str, Any]]] = {
    "elpv": ("elpv", {}),
    "elpv, one anomaly": ("elpv", {"data.n_anomalies": 1}),
    "elpv, hard mono": ("elpv", {"data.setting": "hard", "data.known_class": "mono"}),
    "elpv, hard poly": ("elpv", {"data.setting": "hard", "data.known_class": "poly"}),
    "elpv, all development anomalies": ("elpv", ALL),
    "bottle": ("bottle", {}),
    "sdd": ("sdd", {}),
}
"""Name -> data set and what its task differs by."""
DEFAULT_ON = ("elpv", "bottle", "sdd")
"""Goals on which the default is trained too, and what --heads gives."""
TODAY = {"model.normal_head": "mlp"}
"""The default of profile cpu that the goals were set against."""


@dataclass(frozen=True)
class Job(OnCpuProfile):
    """One training. values: dotted, over the profile."""

    goal: str
    role: str
    partition: int
    seed: int
    values: Mapping[str, Any]

    @property
    def about(self) -> tuple[object, ...]:
        return self.goal, self.role, self.partition, self.seed


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """All trainings that are asked for; raises ConfigError for partitions that are not to be looked at yet."""
    check_partitions(options.partitions, options.final)
    for name in options.goals:
        if name not in GOALS:
            raise ConfigError(f"--goals {name!r}: no such goal; {nearest(name, GOALS)}")
    sets = {"elpv": {"data.source": "elpv"}} | read_yaml(options.sets)
    trained = {CANDIDATE: read_yaml(options.candidate)}
    if options.heads is not None:
        trained[BY_HEADS] = read_yaml(options.heads)
    return [
        Job(goal, role, partition, seed, {**shared, **fields, "data.partition_seed": partition, "seed": seed})
        for goal in options.goals
        for shared in [{"runtime.device": "cpu", **sets[GOALS[goal][0]], **GOALS[goal][1]}]
        for partition in options.partitions
        for seed in options.seeds
        for role, fields in _roles(goal, trained)
        if options.roles is None or role in options.roles
    ]


def _roles(goal: str, trained: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from ((name, {"method.name": name}) for name in REFERENCES)
    everywhere = goal in DEFAULT_ON
    yield from ((role, fields) for role, fields in trained.items() if role == CANDIDATE or everywhere)
    if everywhere:
        yield DEFAULT, TODAY


def train(job: Job) -> Row:
    """One training; value: its AUROC on the test images."""
    trainer = Unscored(job.config)
    seconds = sum(report.metrics["seconds"] for report in trainer.fit())
    fused = job.config.model.normal_head != "mlp"
    ways = {FUSED: {}, HEADS: {"score.density": 0.0}} if fused else {HEADS: {}}
    test, calibration = (_scored(trainer, files, ways) for files in (trainer.split.test, trainer.split.calibration))
    labels = [file.label for file in trainer.split.test]
    return {
        "key": job.key,
        "goal": job.goal,
        "role": job.role,
        "partition": job.partition,
        "seed": job.seed,
        "value": auroc(labels, next(iter(test.values()))),
        "paths": [file.path for file in trainer.split.test],
        "labels": labels,
        "scores": test,
        "calibration": calibration,
        "trained": trainer.split.summary(),
        "seconds": seconds,
        "load": load_average(),
    }


def _scored(trainer: Trainer, files: Files, ways: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    found = trainer.method.variant_scores(images_of(trainer, files), [dict(way) for way in ways.values()])
    return {name: scores.tolist() for name, scores in zip(ways, found, strict=True)}


Values = dict[int, float]
"""Partition -> mean over its seeds."""


def values_of(rows: Sequence[Row], role: str, way: str, figure: Any) -> Values:
    """A figure of each row, by partition; rows of one role are scored in the ways that it has."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["role"] == role and way in row["scores"]:
            found.setdefault(row["partition"], []).append(figure(row, way))
    return {partition: float(np.mean(values)) for partition, values in found.items()}


def of_test(row: Row, way: str) -> float:
    return auroc(row["labels"], row["scores"][way])


def of_middle(row: Row, way: str) -> float:
    """AUROC among the middle crops of KolektorSDD."""
    kept = [number for number, path in enumerate(row["paths"]) if MIDDLE.search(path)]
    return auroc(np.array(row["labels"])[kept], np.array(row["scores"][way])[kept])


def of_escapes(row: Row, way: str) -> float:
    threshold = conformal_threshold(row["calibration"][way], RATE).value
    return escape_rate(row["labels"], row["scores"][way], threshold).value


def of_alarms(row: Row, way: str) -> float:
    threshold = conformal_threshold(row["calibration"][way], RATE).value
    return false_alarm_rate(row["labels"], row["scores"][way], threshold).value


LINES = (
    *((name, HEADS) for name in REFERENCES),
    *((role, way) for role in (CANDIDATE, BY_HEADS) for way in (FUSED, HEADS)),
    (DEFAULT, HEADS),
)
"""Role and way of each line of a table."""


def show(jobs: Sequence[Job], rows: Sequence[Row]) -> None:
    """A table for each goal: AUROC, differences to the better reference and the default, escapes and false alarms."""
    wanted = {job.key for job in jobs}
    for goal in dict.fromkeys(job.goal for job in jobs):
        mine = [row for row in rows if row["key"] in wanted and row["goal"] == goal]
        references = {name: values_of(mine, name, HEADS, of_test) for name in REFERENCES}
        if not any(references.values()):
            continue
        best = max((name for name in REFERENCES if references[name]), key=lambda name: _mean(references[name]))
        against = {best: references[best], DEFAULT: values_of(mine, DEFAULT, HEADS, of_test)}
        print(f"\n{goal}: test images\n")
        head = ["row", "partitions", "AUROC", f"- {best}", "- default", "escapes at 1 %", "false alarms"]
        middle = goal == "sdd"
        print_table(
            [*head, *(["AUROC, middle crops"] if middle else [])],
            [_line(mine, role, way, against, middle) for role, way in LINES if _has(mine, role, way)],
        )


def _has(rows: Sequence[Row], role: str, way: str) -> bool:
    return bool(values_of(rows, role, way, of_test))


def _line(rows: Sequence[Row], role: str, way: str, against: Mapping[str, Values], middle: bool) -> list[str]:
    values = values_of(rows, role, way, of_test)
    cells = ["-" if name == role else _difference(values, other) for name, other in against.items()]
    cells += [_share(values_of(rows, role, way, figure)) for figure in (of_escapes, of_alarms)]
    if middle:
        cells.append(f"{_mean(values_of(rows, role, way, of_middle)):.4f}")
    name = f"{role}, {way}" if role in (CANDIDATE, BY_HEADS) else role
    return [name, str(len(values)), f"{_mean(values):.4f}", *cells]


def _share(values: Values) -> str:
    low, high = (100 * end(values.values()) for end in (min, max))
    return f"{100 * _mean(values):.1f} % ({low:.0f} to {high:.0f})"


def _difference(values: Values, against: Values) -> str:
    shared = {partition: value for partition, value in values.items() if partition in against}
    if len(shared) < 2:
        return "-"
    gaps = {round(value - against[partition], 12) for partition, value in shared.items()}
    if len(gaps) == 1:
        # no interval: they do not vary
        return f"{gaps.pop():+.4f}"
    found = paired(shared, against, False)
    low, high = found["interval"]
    return f"{found['difference']:+.4f} ({low:+.4f} to {high:+.4f})"


def _mean(values: Values) -> float:
    return float(np.mean(list(values.values())))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--sets", type=Path, required=True, help="YAML: fields of bottle and sdd, data.source at least")
    found.add_argument("--candidate", type=Path, required=True, help="YAML: dotted fields over profile cpu")
    found.add_argument("--heads", type=Path, help="YAML: the same, of a configuration whose heads are to be good alone")
    found.add_argument("--goals", nargs="+", default=list(GOALS), help="names of the table; default: all")
    found.add_argument("--roles", nargs="+", choices=(*REFERENCES, CANDIDATE, BY_HEADS, DEFAULT), help="only these")
    add_run_options(found, (101, 102), RESULTS / "goals_rows.jsonl")
    return found


def main() -> None:
    run_resumable(parser().parse_args(), jobs_of, train, show)


if __name__ == "__main__":
    main()
