"""What the scripts that measure share: resumable runs in worker processes, who measured where, methods, data sets."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from multiprocessing.pool import IMapIterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from sctune.config import TrialConfig, load_profile, read_yaml
from sctune.data.decode import Decoding
from sctune.data.images import ImageCache
from sctune.data.split import Files
from sctune.errors import ConfigError, SctuneError, nearest
from sctune.methods.named import method_names, method_values
from sctune.paths import cache_folder
from sctune.report import OBJECTIVE
from sctune.train.trainer import Trainer

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
HARDWARE = "2 cores x86_64 (AMD EPYC, a virtual machine), no GPU"
FORMAT_VERSION = 1
PLAIN = "default"
"""Profile cpu as it is: SaliencyCut's heads and a Gaussian beside them."""
LOOK_S = 10
"""Seconds without a row after which it is looked whether all workers live."""
FINAL = range(11, 16)
"""Partition seeds that nobody looks at before all choices are written down."""


class LastEpochTrainer(Trainer):
    """Scores the selection images after the last epoch only, 0 before it; scoring never touches the training."""

    def _evaluate(self) -> tuple[dict[str, float], dict[str, list[float]]]:
        return super()._evaluate() if self.epoch == self.config.budget.epochs else ({OBJECTIVE: 0.0}, {})


class Unscored(Trainer):
    """Scores nothing after its epochs."""

    def _evaluate(self) -> tuple[dict[str, float], dict[str, list[float]]]:
        return {OBJECTIVE: 0.0}, {}


def digest_of(*configs: TrialConfig) -> str:
    """Of all that a training depends on, short enough for the key of a row."""
    flat = [config.flat() for config in configs]
    return hashlib.sha256(json.dumps(flat if len(flat) > 1 else flat[0], sort_keys=True).encode()).hexdigest()[:12]


class OnCpuProfile:
    """What a job over profile cpu is made of. values: dotted fields; about: what tells it from others, for its key."""

    values: Mapping[str, Any]

    @property
    def about(self) -> tuple[object, ...]:
        raise NotImplementedError

    @property
    def config(self) -> TrialConfig:
        return load_profile("cpu").override(dict(self.values))

    @property
    def key(self) -> str:
        return ":".join(map(str, (*self.about, digest_of(self.config))))


def images_of(trainer: Trainer, files: Files) -> np.ndarray:
    """Images uint8 [N, S, S, 3] of files of the trainer's data set, as it takes them."""
    data = trainer.config.data
    paths = [file.path for file in files]
    cached = ImageCache(cache_folder()).array(trainer.split.root, paths, Decoding.of(data), data.skip_corrupt)
    return np.array(cached.array[[cached.index[path] for path in paths if path in cached.index]])


def check_partitions(partitions: Sequence[int], final: bool) -> None:
    """Raises ConfigError for partitions that are not to be looked at yet."""
    early = [seed for seed in partitions if seed in FINAL]
    if early and not final:
        raise ConfigError(
            f"--partitions {early[0]}: {FINAL[0]} to {FINAL[-1]} are opened once, after all choices are written down; "
            "use others, or --final"
        )


def methods_called(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name -> its fields over profile cpu, none for `PLAIN`; raises ConfigError for another name."""
    known = (PLAIN, *method_names())
    for name in names:
        if name not in known:
            raise ConfigError(f"--methods {name!r}: no such method; {nearest(name, known)}")
    return {name: {} if name == PLAIN else method_values(name, "cpu") for name in names}


def data_sets(path: Path | None, chosen: Sequence[str] | None) -> dict[str, Mapping[str, Any]]:
    """Name -> fields of ELPV and of the sets of a YAML file, or of the chosen ones; raises ConfigError for another."""
    sets: dict[str, Mapping[str, Any]] = {"elpv": {"data.source": "elpv"}} | ({} if path is None else read_yaml(path))
    for name in chosen or ():
        if name not in sets:
            raise ConfigError(f"--data {name!r}: no such data set; {nearest(name, sets)}")
    return {name: sets[name] for name in chosen or sets}


class Remembered(nn.Module):
    """A backbone that computes the features of a sequence of batches once, and gives them in turn ever after."""

    def __init__(self, backbone: nn.Module, batches: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.batches = batches
        self.calls = 0
        self.features: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        place = self.calls % self.batches
        if place == len(self.features):
            self.features.append(self.backbone(images))
        self.calls += 1
        return self.features[place]


def common_parser(description: str, out: Path) -> argparse.ArgumentParser:
    """--workers, --out, --rows and --hardware; the raw rows lie beside the summary unless --rows says otherwise."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--workers", type=int, default=2, help="worker processes, one torch thread each")
    parser.add_argument("--out", type=Path, default=out, help="summary (JSON), written anew by each call")
    parser.add_argument("--rows", type=Path, help="raw rows (JSON lines), appended to; what they hold is not run again")
    parser.add_argument("--hardware", default=HARDWARE, help="the machine in words, for the summary")
    return parser


def rows_path(options: argparse.Namespace) -> Path:
    out: Path = options.out
    return options.rows or out.with_name(f"{out.stem}_rows.jsonl")


def read_rows(path: Path) -> list[Row]:
    """The rows so far; a last line that a killed run left half-written is not counted."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_row(path: Path, row: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def run_jobs(work: Callable[[Any], Row], jobs: Sequence[Any], workers: int, path: Path) -> int:
    """Run `work` on every job in fresh processes; each row is stored as soon as it is there.

    Gives how many ended in an error: these are told and have no row, and the others go on. Ends with one line where a
    process was killed, which a pool would wait for without end.
    """
    started, failed = time.perf_counter(), 0
    # of a process and its libraries, read when they are loaded
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_one_thread) as pool:
        crew = _children()
        rows = pool.imap_unordered(partial(_attempt, work), jobs)
        for done in range(1, len(jobs) + 1):
            row = _next(rows, crew)
            failed += isinstance(row, str)
            minutes = (time.perf_counter() - started) / 60
            if isinstance(row, str):
                print(f"{done}/{len(jobs)} after {minutes:.1f} min: {row}", flush=True)
                continue
            append_row(path, row)
            print(f"{done}/{len(jobs)} after {minutes:.1f} min: {row['key']} {row['value']:.4f}", flush=True)
    if failed:
        print(f"{failed} of {len(jobs)} trainings ended in an error; the same command tries them again", flush=True)
    return failed


def _attempt(work: Callable[[Any], Row], job: Any) -> Row | str:
    """The row of a job, or its error and where it was raised."""
    try:
        return work(job)
    except Exception:
        return f"{job} ended in an error\n{traceback.format_exc()}"


def _next(rows: IMapIterator[Row | str], crew: set[int | None]) -> Row | str:
    """The next of the rows; ends with one line where a process of the crew is gone, and another in its place."""
    while True:
        try:
            return rows.next(timeout=LOOK_S)
        except multiprocessing.TimeoutError:
            if _children() != crew:
                raise SystemExit(
                    "a worker process was killed, most often for want of memory; the same command goes on with what is "
                    "left, perhaps with fewer --workers"
                ) from None


def _children() -> set[int | None]:
    return {child.pid for child in multiprocessing.active_children()}


def add_run_options(found: argparse.ArgumentParser, seeds: Sequence[int], out: Path) -> None:
    """--partitions, --seeds, --final, --workers and --out of what trains on many partitions (`run_resumable`)."""
    found.add_argument("--partitions", type=int, nargs="+", default=[0], help="partition seeds")
    found.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help="training seeds")
    found.add_argument("--final", action="store_true", help="allow partitions 11 to 15")
    found.add_argument("--workers", type=int, default=1, help="worker processes, one torch thread each")
    found.add_argument("--out", type=Path, default=out, help="a line for each training")


def run_resumable(
    options: argparse.Namespace,
    jobs_of: Callable[[argparse.Namespace], Sequence[Any]],
    work: Callable[[Any], Row],
    show: Callable[[Sequence[Any], Sequence[Row]], None],
) -> None:
    """Run the jobs that `--out` lacks (a job has a `key`), then show all of them; bad input ends with one line."""
    try:
        jobs = jobs_of(options)
        done = {row["key"] for row in read_rows(options.out)}
        # a key asks for the configuration, which may be refused
        left = [job for job in jobs if job.key not in done]
    except SctuneError as problem:
        raise SystemExit(str(problem)) from None
    print(f"{len(jobs)} trainings, {len(jobs) - len(left)} there already", flush=True)
    failed = run_jobs(work, left, options.workers, options.out) if left else 0
    show(jobs, read_rows(options.out))
    if failed:
        raise SystemExit(1)


def _one_thread() -> None:
    # two trainings on two cores do more side by side than one after the other
    torch.set_num_threads(1)


def heading(options: argparse.Namespace, rows: Sequence[Row]) -> Row:
    """First fields of a summary; load_average: the lowest and highest one-minute mean seen at the end of a run."""
    loads = [row["load"] for row in rows]
    return {
        "format_version": FORMAT_VERSION,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": options.hardware,
        "software": {name: version(name) for name in ("torch", "numpy", "scipy")}
        | {"python": platform.python_version()},
        "load_average": [min(loads), max(loads)] if loads else None,
        "data": "elpv",
        "profile": "cpu",
    }


def paired(values: dict[int, float], baseline: dict[int, float], is_baseline: bool) -> Row:
    """Mean AUROC, and the paired differences with Student's 95 % interval over seeds."""
    shown: Row = {
        "seeds": len(values),
        "auroc": statistics.fmean(values.values()),
        "sd": statistics.stdev(values.values()) if len(values) > 1 else None,
    }
    if is_baseline or len(values) < 2:
        return shown
    gaps = np.array([values[seed] - baseline[seed] for seed in sorted(values)])
    test = stats.ttest_1samp(gaps, 0.0)
    low, high = test.confidence_interval(0.95)
    return shown | {
        "difference": float(gaps.mean()),
        "interval": [float(low), float(high)],
        "p_value": float(test.pvalue),
        "higher": int((gaps > 0).sum()),
        "differences": [round(float(gap), 5) for gap in gaps],
    }


def paired_text(found: Row) -> str:
    """What `paired` found, in a cell of a table."""
    text = f"{found['auroc']:.4f}"
    if "difference" not in found:
        return text
    low, high = found["interval"]
    return f"{text} ({found['difference']:+.4f}, {low:+.4f} to {high:+.4f})"


def write_json(path: Path, content: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for cells in (names, ["---"] * len(names), *rows):
        print(f"| {' | '.join(cells)} |")


def load_average() -> float:
    return round(os.getloadavg()[0], 2)
