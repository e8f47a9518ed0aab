"""Which normal head is best beside trained heads: densities of pooled or cell features, frozen or trained trunk.

The heads of a training do not depend on what stands beside them, so each job trains them once and then fits every
density to the same training normals, as `model.normal_head` does at the end of a training. Development pools alone are
read: scored are all their selection images. Resumable: a JSON line for each training, which holds the raw scores.
Shows, for each data set, the AUROC of each density alone and in the sum at the weight that `score.density=auto` has,
with its paired difference to the default's same figure and Student's 95 % interval. Without --seeds, partition P is
trained with seed 101 + P.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from measure_common import (
    RESULTS,
    OnCpuProfile,
    Row,
    Unscored,
    add_run_options,
    check_partitions,
    data_sets,
    images_of,
    load_average,
    paired,
    paired_text,
    print_table,
    run_resumable,
)

from sctune.config import TrialConfig
from sctune.methods.base import TaskImages
from sctune.methods.deviation.density import density_config
from sctune.methods.deviation.fused import BesideMethod, FusedMethod
from sctune.methods.deviation.joined import JoinedMethod
from sctune.methods.deviation.method import DeviationMethod
from sctune.methods.registry import method_class
from sctune.methods.untrained.reference import Reference
from sctune.metrics.image_level import auroc

TRAINED, CELLS = {"model.density_trunk": "trained"}, {"model.density_features": "cells"}
MIXTURE = {"model.normal_head": "mixture"}
PLAIN, HEADS = "pooled, frozen", "the heads alone"
DENSITIES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "cells, frozen": CELLS,
    "pooled, trained": TRAINED,
    "cells, trained": TRAINED | CELLS,
    "mixture of pooled, frozen": MIXTURE,
    "mixture of cells, frozen": MIXTURE | CELLS,
    "mixture of pooled, trained": MIXTURE | TRAINED,
}
"""Name -> what differs from profile `cpu`; the first is its default."""
WAYS: dict[str, float | str] = {"heads": 0.0, "sum": "auto", "ten": 10.0}
"""Name -> weight of the density beside the heads; "ten" less "heads" is ten times the density alone."""
FIGURES = ("sum", "alone")


class Heads(DeviationMethod):
    """A detector that is trained already."""

    def prepare(self, images: TaskImages) -> None:
        pass

    def run_epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class Job(OnCpuProfile):
    """One training. values: dotted, over profile cpu."""

    data: str
    partition: int
    seed: int
    values: Mapping[str, Any]

    @property
    def about(self) -> tuple[object, ...]:
        return (self.data, self.partition, self.seed)


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """All trainings that are asked for; raises ConfigError for partitions that are not to be looked at yet."""
    check_partitions(options.partitions, options.final)
    common = {"data.selection_limit": None, "runtime.device": "cpu", "model.normal_head": "gaussian"}
    return [
        Job(data, partition, seed, common | dict(fields) | {"data.partition_seed": partition, "seed": seed})
        for data, fields in data_sets(options.sets, options.data).items()
        for partition in options.partitions
        for seed in (options.seeds or [101 + partition])
    ]


def train(job: Job) -> Row:
    """One training and all densities; value: AUROC of the default's sum on the selection images."""
    trainer = Unscored(job.config)
    for _ in trainer.fit():
        pass
    fused = trainer.method
    assert isinstance(fused, FusedMethod)
    train_files = trainer.split.train
    rows = [np.array([number for number, file in enumerate(train_files) if file.label == of]) for of in (0, 1)]
    images = TaskImages(images_of(trainer, train_files), *rows)
    scores: dict[str, dict[str, list[float]]] = {}
    seconds = {}
    for name, fields in DENSITIES.items():
        config, started = trainer.config.override(fields), process_time()
        method = beside(config, fused.trained_part)
        method.prepare(images)
        method.run_epoch(0, lambda: False)
        seconds[name] = process_time() - started
        found = method.variant_scores(trainer.selection.images, [{"score.density": one} for one in WAYS.values()])
        scores[name] = {way: row.tolist() for way, row in zip(WAYS, found, strict=True)}
    labels = trainer.selection.labels
    # what was trained and this way to fit are the same model
    np.testing.assert_allclose(scores[PLAIN]["sum"], fused.score(trainer.selection.images), rtol=1e-4, atol=1e-4)
    return {
        "key": job.key,
        "data": job.data,
        "partition": job.partition,
        "seed": job.seed,
        "value": auroc(labels, np.array(scores[PLAIN]["sum"])),
        "mode": trainer.split.mode,
        "labels": labels.tolist(),
        "scores": scores,
        "seconds": seconds,
        "load": load_average(),
    }


def beside(config: TrialConfig, trained: DeviationMethod) -> BesideMethod:
    """What `model.normal_head` makes of a trained detector."""
    heads = Heads(config, trained.device, trained.scored)
    if config.model.density_trunk == "trained":
        return JoinedMethod(config, trained.device, heads)
    own = density_config(config)
    kind = method_class(own)
    assert issubclass(kind, Reference)
    return FusedMethod(config, trained.device, heads, kind.fresh(own, trained.device))


def show(jobs: Sequence[Job], rows: Sequence[Row]) -> None:
    """A table for each data set; differences to the default's same figure, of the heads to its sum."""
    by_key = {row["key"]: row for row in rows}
    for data in dict.fromkeys(job.data for job in jobs):
        mine = [by_key[job.key] for job in jobs if job.data == data and job.key in by_key]
        if not mine:
            continue
        modes = ", ".join(sorted({row["mode"] for row in mine}))
        print(f"\n{data}: {len(mine)} trainings, selection images ({modes}); differences to {PLAIN}\n")
        base = {figure: _values(mine, PLAIN, figure) for figure in ("heads", *FIGURES)}
        lines = [[HEADS, paired_text(paired(base["heads"], base["sum"], False)), "", ""]]
        for name in DENSITIES:
            sums, alone = (
                paired_text(paired(_values(mine, name, figure), base[figure], name == PLAIN)) for figure in FIGURES
            )
            seconds = np.median([row["seconds"][name] for row in mine])
            lines.append([name, sums, alone, f"{seconds:.0f}"])
        print_table(["density", "sum", "density alone", "CPU seconds of the fit"], lines)


def _values(rows: Sequence[Row], name: str, figure: str) -> dict[int, float]:
    return {number: auroc(row["labels"], _scores(row["scores"][name], figure)) for number, row in enumerate(rows)}


def _scores(ways: Mapping[str, list[float]], figure: str) -> np.ndarray:
    return np.array(ways["ten"]) - np.array(ways["heads"]) if figure == "alone" else np.array(ways[figure])


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--sets", type=Path, help="YAML: name of each data set -> its fields, beside elpv")
    found.add_argument("--data", nargs="+", help="names of the data sets; default: all")
    add_run_options(found, (), RESULTS / "densities_rows.jsonl")
    return found


def main() -> None:
    run_resumable(parser().parse_args(), jobs_of, train, show)


if __name__ == "__main__":
    main()
