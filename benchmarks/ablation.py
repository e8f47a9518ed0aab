"""What each choice of training costs or brings: named variants beside the default, on data sets, partitions and seeds.

Trains on development pools and scores their selection images, never the test pool; partitions 11 to 15 decide at the
end, and are refused without --final. Resumable: a JSON line for each training, which holds the raw scores. Shows the
paired difference to the default with its 95 % interval for each data set: alone, as the mean over quarter turns, and
added to the Gaussian reference of the same task, both in deviations of held-out calibration normals.
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
    paired_text,
    print_table,
    run_resumable,
)

from sctune.config import TrialConfig, load_profile, parse_assignments, read_yaml
from sctune.errors import ConfigError, DataError, nearest
from sctune.metrics.image_level import auroc

DEFAULT, GAUSSIAN = "default", "gaussian"
QUARTER = {"augment.rotation": "quarter"}
MOMENTUM = {"model.batch_norm_momentum": 0.1}
EVAL = {"model.batch_norm": "eval"}
AREA = {"augment.threshold_mode": "area", "augment.threshold": 0.15}
LONGER = {"budget.iterations": 60}

VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    GAUSSIAN: {"method.name": "gaussian"},
    # batch norm
    "batch norm eval": EVAL,
    "momentum .03": {"model.batch_norm_momentum": 0.03},
    "momentum .1": MOMENTUM,
    "statistics of batches": {"optim.final_statistics": "batches"},
    "statistics of normals": {"optim.final_statistics": "normals"},
    # turns
    "quarter turns": QUARTER,
    "no turns": {"augment.rotation": "none"},
    "reflected corners": {"augment.rotation_fill": "reflect"},
    "quarter turns and mirrors": QUARTER | {"augment.flip": "both"},
    "shift": {"augment.shift": 0.05},
    "brightness and contrast": {"augment.brightness": 0.1, "augment.contrast": 0.1},
    # pseudo anomalies, and how much is pasted
    "cutpaste": {"augment.kind": "cutpaste"},
    "no pseudo anomalies": {"augment.kind": "none"},
    "area .15": AREA,
    "area .4": AREA | {"augment.threshold": 0.4},
    # length and rate
    "three times as long": LONGER,
    "rate x 3": {"optim.lr": 6e-4},
    "rate / 3": {"optim.lr": 7e-5},
    # tap, frozen blocks, patches
    "deep tap": {"model.tap": "deep", "model.patch_place": "grid2d", "model.patch_size": "half"},
    "taps stride8, stride16": {"model.taps": "stride8,stride16"},
    "nothing frozen": {"model.freeze": 0},
    "all frozen": {"model.freeze": 12},
    "patches anywhere": {"model.patch_place": "grid2d"},
    # averages
    "ema": {"optim.average": "ema"},
    "mean of the second half": {"optim.average": "mean"},
    "mean, statistics of batches": {"optim.average": "mean", "optim.final_statistics": "batches"},
    # together
    "quarter, momentum": QUARTER | MOMENTUM,
    "quarter, momentum, cutpaste": QUARTER | MOMENTUM | {"augment.kind": "cutpaste"},
    "quarter, momentum, no pseudo anomalies": QUARTER | MOMENTUM | {"augment.kind": "none"},
    "quarter, momentum, area .15": QUARTER | MOMENTUM | AREA,
    "quarter, batch norm eval": QUARTER | EVAL,
    "quarter, batch norm eval, no pseudo anomalies": QUARTER | EVAL | {"augment.kind": "none"},
    "quarter, three times as long": QUARTER | LONGER,
    "quarter, momentum, mean, statistics of normals": QUARTER
    | MOMENTUM
    | {"optim.average": "mean", "optim.final_statistics": "normals"},
}
"""Name -> what differs from the profile; the fields of `docs/training.md`."""


@dataclass(frozen=True)
class Job:
    """One training. values: dotted, over the profile; key: what it is, with a digest of the whole configuration."""

    data: str
    variant: str
    partition: int
    seed: int
    profile: str
    values: Mapping[str, Any]

    @property
    def config(self) -> TrialConfig:
        return load_profile(self.profile).override(dict(self.values))

    @property
    def key(self) -> str:
        return f"{self.data}:{self.variant}:{self.partition}:{self.seed}:{digest_of(self.config)}"


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """All trainings that are asked for; raises ConfigError for partitions that are not to be looked at yet."""
    check_partitions(options.partitions, options.final)
    for name in options.variants:
        if name not in VARIANTS:
            raise ConfigError(f"--variants {name!r}: no such variant; {nearest(name, VARIANTS)}")
    sets = {"elpv": {"data.source": "elpv"}} if options.sets is None else read_yaml(options.sets)
    common = {"data.selection_limit": None, "runtime.device": "cpu", "model.normal_head": "mlp"} | parse_assignments(
        options.set
    )
    return [
        Job(
            data,
            variant,
            partition,
            seed,
            options.profile,
            common | fields | VARIANTS[variant] | {"data.partition_seed": partition, "seed": seed},
        )
        for data, fields in sets.items()
        for partition in options.partitions
        for seed in options.seeds
        for variant in dict.fromkeys((DEFAULT, GAUSSIAN, *options.variants))
    ]


def train(job: Job) -> Row:
    """One training; value: its AUROC on the selection images."""
    trainer = Unscored(job.config)
    labels = trainer.selection.labels
    if set(labels.tolist()) != {0, 1}:
        raise DataError(f"{job.data}: no anomalies are left to select by ({trainer.split.reason})")
    seconds = sum(report.metrics["seconds"] for report in trainer.fit())
    # the task's calibration normals, which take part in no fit
    held = images_of(trainer, trainer.split.calibration)
    # where a method knows the field; the others have one way to score
    ways = [{"score.turns": 1}, {"score.turns": 4}] if trainer.config.entry.looks_at("score.turns") else [{}]
    scores = trainer.method.variant_scores(trainer.selection.images, ways)
    return {
        "key": job.key,
        "data": job.data,
        "variant": job.variant,
        "partition": job.partition,
        "seed": job.seed,
        "value": auroc(labels, scores[0]),
        "mode": trainer.split.mode,
        "labels": labels.tolist(),
        "scores": [row.tolist() for row in scores],
        "calibration": [row.tolist() for row in trainer.method.variant_scores(held, ways)],
        "seconds": seconds,
        "load": load_average(),
    }


def scaled(row: Row, way: int) -> np.ndarray:
    """Scores [N] in standard deviations of the calibration normals, 0 at their mean."""
    held = np.array(row["calibration"][way])
    return (np.array(row["scores"][way]) - held.mean()) / max(float(held.std(ddof=1)), 1e-12)


def figures(rows: Mapping[tuple[str, int, int], Row], variant: str) -> dict[str, dict[int, float]]:
    """Figure -> number of the pair (partition, seed) -> AUROC, of the pairs that have all that it needs."""
    found: dict[str, dict[int, float]] = {"alone": {}, "four turns": {}, "fused": {}, "fused, four turns": {}}
    pairs = sorted({(partition, seed) for _, partition, seed in rows})
    for number, pair in enumerate(pairs):
        row, gaussian = rows.get((variant, *pair)), rows.get((GAUSSIAN, *pair))
        if row is None:
            continue
        for way, suffix in enumerate(("", ", four turns")[: len(row["scores"])]):
            found[suffix.removeprefix(", ") or "alone"][number] = auroc(row["labels"], row["scores"][way])
            if gaussian is not None and variant != GAUSSIAN:
                both = scaled(row, way) + scaled(gaussian, 0)
                found[f"fused{suffix}"][number] = auroc(row["labels"], both)
    return found


def show(jobs: Sequence[Job], rows: Sequence[Row]) -> None:
    """A table for each data set: AUROC and paired difference to the default's same figure, Student's 95 % interval."""
    by_key = {row["key"]: row for row in rows}
    for data in dict.fromkeys(job.data for job in jobs):
        mine = [job for job in jobs if job.data == data and job.key in by_key]
        held = {(job.variant, job.partition, job.seed): by_key[job.key] for job in mine}
        if not held:
            continue
        base = figures(held, DEFAULT)
        modes = ", ".join(sorted({row["mode"] for row in held.values()}))
        print(f"\n{data}: selection images ({modes}); differences to the default over pairs of partition and seed\n")
        print_table(
            ["variant", "pairs", *base],
            [_line(variant, figures(held, variant), base) for variant in dict.fromkeys(job.variant for job in mine)],
        )


def _line(variant: str, own: Mapping[str, dict[int, float]], base: Mapping[str, dict[int, float]]) -> list[str]:
    # the default's own turns and fusion are compared with the default alone
    cells = []
    for name, values in own.items():
        against = base["alone"] if variant in (DEFAULT, GAUSSIAN) else base[name]
        shared = {number: value for number, value in values.items() if number in against}
        first = variant == DEFAULT and name == "alone"
        cells.append(paired_text(paired(shared, against, first)) if shared else "-")
    return [variant, str(len(own["alone"])), *cells]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--sets", type=Path, help="YAML: name of each data set -> its fields; without: elpv alone")
    found.add_argument("--variants", nargs="+", default=list(VARIANTS), help="names of the table; default: all")
    found.add_argument("--profile", default="cpu")
    found.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="for all variants")
    add_run_options(found, (101, 102, 103, 104, 105), RESULTS / "ablation_rows.jsonl")
    return found


def main() -> None:
    run_resumable(parser().parse_args(), jobs_of, train, show)


if __name__ == "__main__":
    main()
