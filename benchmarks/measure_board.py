"""Our own board: every method on every data set, with ten anomalies and with one, one known class, and none at all.

Profile cpu, the paper's protocol (the test images are all that is not trained on; with one known class, of the others).
For each training: AUROC on the test images, before training too where a method begins with ImageNet weights, CPU
seconds, milliseconds for an image, and the most memory. A method that does not look at labelled anomalies is trained
once for all tasks of the same normal images.
Resumable: a JSON line for each training, without raw scores, so that it can be kept in the repository.
"""

from __future__ import annotations

import argparse
import gc
import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from measure_common import (
    PLAIN,
    RESULTS,
    Row,
    Unscored,
    data_sets,
    digest_of,
    images_of,
    load_average,
    methods_called,
    paired,
    print_table,
    run_resumable,
)
from reproduced import reproduced_rows
from scipy import stats

from sctune.backbones.weights import RANDOM
from sctune.config import TrialConfig, load_profile
from sctune.data.catalog import open_dataset
from sctune.data.split import Split, split_for
from sctune.errors import ConfigError, DataError, SctuneError, nearest
from sctune.methods.named import method_names
from sctune.methods.untrained import store
from sctune.metrics.image_level import auroc
from sctune.reproduce.cells import match
from sctune.train.memory import give_memory_back
from sctune.train.trainer import task_of

LEFT_OUT = ("kdad", "kdad_resnet18")
"""Weights that download from the web; ask for them by name."""
TIMED = 64
"""Images that the time of one is measured with."""
PROTOCOL = {"data.selection": "test", "data.selection_limit": 16, "runtime.device": "cpu"}


@dataclass(frozen=True)
class Job:
    """One training. cells: name of each task that it is scored on -> values of the task, the first is trained on.

    part: pattern of the paths of test images that are measured apart too, None for none.
    """

    data: str
    method: str
    seed: int
    cells: Mapping[str, Mapping[str, Any]]
    values: Mapping[str, Any]
    part: str | None = None

    def config(self, cell: str) -> TrialConfig:
        return load_profile("cpu").override({**self.values, **self.cells[cell]})

    @property
    def key(self) -> str:
        digest = digest_of(*(self.config(cell) for cell in self.cells))
        apart = "" if self.part is None else f":{self.part}"
        return f"{self.data}:{self.method}:{'+'.join(self.cells)}:{self.seed}:{digest}{apart}"


def cells_of(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> values of each task that a data set allows; the hard setting needs two kinds of anomaly at least."""
    found: dict[str, dict[str, Any]] = {
        "10": {"data.n_anomalies": 10},
        "1": {"data.n_anomalies": 1},
        "none": {"data.setting": "anomaly-free"},
    }
    kinds = open_dataset(str(fields["data.source"]), fields.get("data.category")).kinds
    if len(kinds) > 1:
        hard = {"data.setting": "hard", "data.n_anomalies": 10}
        found |= {f"hard {kind}": {**hard, "data.known_class": kind} for kind in kinds}
    return found


def jobs_of(options: argparse.Namespace) -> list[Job]:
    methods, sets = methods_called(options.methods), data_sets(options.sets, options.data)
    parts = dict(_part(one, sets) for one in options.part)
    return [
        replace(job, part=parts.get(job.data))
        for seed in options.seeds
        for name, fields in sets.items()
        for method, own in methods.items()
        for job in _jobs(name, method, seed, fields, {**PROTOCOL, **own, **fields, "seed": seed})
    ]


def _part(assignment: str, sets: Mapping[str, object]) -> tuple[str, str]:
    name, _, pattern = assignment.partition("=")
    if name not in sets or not pattern:
        raise ConfigError(f"--part {assignment!r}: give NAME=REGEX; {nearest(name, sets)}")
    try:
        re.compile(pattern)
    except re.error as problem:
        raise ConfigError(f"--part {assignment!r}: {pattern!r} is no regular expression: {problem}") from None
    return name, pattern


def _jobs(data: str, method: str, seed: int, fields: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Job]:
    together: dict[str, Mapping[str, Any]] = {}
    for name, cell in cells_of(fields).items():
        with suppress(ConfigError):  # a setting that the method cannot have
            config = load_profile("cpu").override({**values, **cell})
            if config.entry.learns_from_anomalies(config) and config.n_anomalies != 0:
                yield Job(data, method, seed, {name: cell}, values)
            else:
                together[name] = cell
    if together:
        yield Job(data, method, seed, together, values)


def train(job: Job) -> Row:
    """One training; value: its AUROC on the test images of its first task, NaN where it failed."""
    with _nothing_kept():
        try:
            return _trained(job)
        except SctuneError as problem:
            # the others go on; without this line in the file it is tried again
            text = str(problem)
    return {
        "key": job.key,
        "data": job.data,
        "method": job.method,
        "seed": job.seed,
        "value": math.nan,
        "problem": text,
    }


def _trained(job: Job) -> Row:
    first, *others = job.cells
    before = _untrained(job)
    _forget_peak()
    trainer = Unscored(job.config(first))
    splits = {first: trainer.split} | {cell: _split(job.config(cell)) for cell in others}
    for cell, split in splits.items():
        if _normals(split) != _normals(trainer.split):
            raise DataError(f"{job.key}: task {cell} has other normal images, so that it needs a training of its own")
    files = {file.path: file for split in splits.values() for file in split.test}
    images = images_of(trainer, tuple(files.values()))
    started = time.process_time()
    for _ in trainer.fit():
        pass
    trained = time.process_time()
    scores = trainer.method.score(images)
    # what was made of images that were scored before may have been kept
    unseen = np.ascontiguousarray(images[:TIMED, :, ::-1])
    began = time.process_time()
    trainer.method.score(unseen)
    scored = time.process_time()
    places = {path: number for number, path in enumerate(files)}
    cells = {}
    for cell, split in splits.items():
        rows, labels = [places[file.path] for file in split.test], [file.label for file in split.test]
        cells[cell] = {
            "auroc": auroc(labels, scores[rows]),
            "part": _of_part(job.part, [file.path for file in split.test], labels, scores[rows]),
            "untrained": before.get(cell),
            "normal": labels.count(0),
            "anomalous": labels.count(1),
        }
    return {
        "key": job.key,
        "data": job.data,
        "method": job.method,
        "seed": job.seed,
        "value": cells[first]["auroc"],
        "cells": cells,
        "seconds": round(trained - started, 2),
        "milliseconds": round(1000 * (scored - began) / len(unseen), 2),
        "mib": _peak(),
        "load": load_average(),
    }


def _of_part(pattern: str | None, paths: Sequence[str], labels: Sequence[int], scores: np.ndarray) -> float | None:
    """AUROC among the images whose path the pattern finds; None where one class is not among them."""
    kept = [place for place, path in enumerate(paths) if pattern is not None and re.search(pattern, path)]
    own = [labels[place] for place in kept]
    return auroc(own, scores[kept]) if len(set(own)) == 2 else None


def _untrained(job: Job) -> dict[str, float]:
    """AUROC of each task before the training, by a trainer of its own, which leaves nothing behind."""
    if not _can_score(job.config(next(iter(job.cells)))):
        return {}
    trainer = Unscored(job.config(next(iter(job.cells))))
    found = {}
    for cell in job.cells:
        files = _split(job.config(cell)).test
        found[cell] = auroc([file.label for file in files], trainer.method.score(images_of(trainer, files)))
    return found


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """While inside, no features of earlier trainings are known, in memory or on disk; their memory is given back."""
    gc.collect()
    give_memory_back()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patched:
        patched.enter_context(patch.object(store, "cache_folder", lambda: Path(folder)))
        patched.enter_context(patch.object(store, "_memory", store.Memory(store.MEMORY_BYTES)))
        yield


def _can_score(config: TrialConfig) -> bool:
    """Before its training: with weights that have learned something, and nothing that is fitted to the images."""
    entry, model = config.entry, config.model
    fitted = entry.looks_at("model.normal_head") and model.normal_head != "mlp"
    return entry.trains and entry.looks_at("model.backbone") and model.weights != RANDOM and not fitted


def _split(config: TrialConfig) -> Split:
    return split_for(config, task_of(config))


def _normals(split: Split) -> list[str]:
    return [file.path for file in split.train if file.label == 0]


def _forget_peak() -> None:
    # of what the process did before; Linux alone has it
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """The most memory since, in MiB, pages of image files in it."""
    with suppress(OSError):
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return None if match is None else int(match[1]) // 1024
    return None


def show(elsewhere: Sequence[Row], jobs: Sequence[Job], rows: Sequence[Row]) -> None:
    """A table for each data set, and one of what it costs; elsewhere: rows without costs, which ours go before."""
    wanted = {job.key for job in jobs}
    measured = [row for row in rows if row["key"] in wanted and "cells" in row]
    asked = {(job.data, job.method) for job in jobs}
    mine = [*measured, *(row for row in elsewhere if (row["data"], row["method"]) in asked)]
    for row in rows:
        if row["key"] in wanted and "problem" in row:
            print(f"{row['key']} failed: {row['problem']}")
    for data in dict.fromkeys(row["data"] for row in mine):
        of_set = [row for row in mine if row["data"] == data]
        cells = list(dict.fromkeys(cell for row in of_set for cell in row["cells"]))
        cells.sort(key=lambda cell: (cell == "none", cell.startswith("hard"), cell != "10"))
        methods = list(dict.fromkeys(row["method"] for row in of_set))
        print(f"\n{data}: test AUROC, mean over seeds (Student's 95 % interval); after the stroke before training\n")
        print_table(["method", *cells], [[name, *(_cell(of_set, name, cell) for cell in cells)] for name in methods])
        apart = [name for name in methods if any(_parts(of_set, name, cell) for cell in cells)]
        if apart:
            pattern = next(job.part for job in jobs if job.data == data)
            print(f"\n{data}: the same among the test images whose path has {pattern}\n")
            rows_apart = [[name, *(_mean(_parts(of_set, name, cell)) for cell in cells)] for name in apart]
            print_table(["method", *cells], rows_apart)
    print("\ncosts on one core: mean CPU seconds of a training, mean CPU milliseconds of an image, most MiB\n")
    names = list(dict.fromkeys(row["data"] for row in mine))
    print_table(
        ["method", *(f"{data}, {unit}" for data in names for unit in ("s", "ms", "MiB"))],
        [[name, *(text for data in names for text in _costs(measured, name, data))] for name in _methods(measured)],
    )


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _cell(rows: Sequence[Row], method: str, cell: str) -> str:
    # ours come first
    found = {row["seed"]: row["cells"][cell] for row in rows[::-1] if row["method"] == method and cell in row["cells"]}
    if not found:
        return "-"
    text = _mean([one["auroc"] for one in found.values()])
    before = {seed: one["untrained"] for seed, one in found.items() if one["untrained"] is not None}
    if not before:
        return text
    # by Student's interval of the paired differences, where two seeds have both at least
    after = {seed: found[seed]["auroc"] for seed in before}
    surely = paired(after, before, False).get("interval", (0, 0))[1] < 0
    lower = np.mean(list(after.values())) < np.mean(list(before.values()))
    worse = " **worse**" if surely else " worse" if lower else ""
    few = f" ({len(before)} of {len(found)} seeds)" if len(before) < len(found) else ""
    return f"{text} / {np.mean(list(before.values())):.3f}{few}{worse}"


def _parts(rows: Sequence[Row], method: str, cell: str) -> list[float]:
    mine = [row["cells"][cell].get("part") for row in rows if row["method"] == method and cell in row["cells"]]
    return [value for value in mine if value is not None]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = float(np.mean(values))
    if len(set(values)) < 2:
        return f"{mean:.3f}"
    low, high = stats.t.interval(0.95, len(values) - 1, mean, stats.sem(values))
    return f"{mean:.3f} ({max(low, 0):.3f} to {min(high, 1):.3f})"


def _costs(rows: Sequence[Row], method: str, data: str) -> list[str]:
    own = [row for row in rows if row["method"] == method and row["data"] == data]
    if not own:
        return ["-"] * 3
    seconds, each = (np.mean([row[name] for row in own]) for name in ("seconds", "milliseconds"))
    return [f"{seconds:.0f}", f"{each:.0f}", f"{max(row['mib'] or 0 for row in own)}"]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__)
    default = [PLAIN, *(name for name in method_names() if name not in LEFT_OUT)]
    found.add_argument("--sets", type=Path, help="YAML: name of each further data set -> its fields")
    found.add_argument(
        "--part", nargs="+", default=[], metavar="NAME=REGEX", help="test images of a set that are measured apart too"
    )
    found.add_argument("--data", nargs="+", help="names of data sets; default: all")
    found.add_argument("--methods", nargs="+", default=default, help="names; default: all whose weights are here")
    found.add_argument(
        "--reproduced",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="documents of sctune reproduce --json, a data set each; their seeds stand beside those that are run here",
    )
    found.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="training seeds")
    found.add_argument("--workers", type=int, default=1, help="worker processes, one torch thread each")
    found.add_argument("--out", type=Path, default=RESULTS / "board_rows.jsonl", help="a line for each training")
    return found


def main() -> None:
    options = parser().parse_args()
    try:
        elsewhere = _of_the_board(reproduced_rows(options.reproduced), options)
    except SctuneError as problem:
        raise SystemExit(str(problem)) from None
    run_resumable(options, jobs_of, train, partial(show, elsewhere))


def _of_the_board(elsewhere: Sequence[Row], options: argparse.Namespace) -> list[Row]:
    """The rows under the board's names of their cells; raises ConfigError for a data set or a cell that it has not."""
    sets = data_sets(options.sets, None)
    found = []
    for row in elsewhere:
        if row["data"] not in sets:
            raise ConfigError(f"--reproduced {row['data']}=...: no such data set; {nearest(row['data'], sets)}")
        known = cells_of(sets[row["data"]])
        cells = {}
        for name, cell in row["cells"].items():
            # a class is called otherwise in the paper than its folder is
            own = match(name, known)
            if own is None:
                raise ConfigError(f"--reproduced {row['data']}=...: {nearest(name, known)}, not {name!r}")
            cells[own] = cell
        found.append({**row, "cells": cells})
    return found


if __name__ == "__main__":
    main()
