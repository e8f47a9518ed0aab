"""A table to decide by: many configurations of a space, each trained with many seeds, every epoch kept; trained once.

    python benchmarks/record_table.py train --name elpv --data elpv --workers 2
    python benchmarks/record_table.py pack --name elpv

`train` keeps a line for each training (`--rows`, else results/table_NAME_rows.jsonl) and goes on where it was stopped
or killed. It trains seed by seed, all configurations with the first seed, then all with the second: what is there at
any time can be packed, of as many seeds as are through. `pack` writes benchmarks/tables/NAME.npz, which
`sctune simulate` reads.

The first configurations are those that a search would begin with (the published one, the space's start points), the
rest a scrambled Sobol sequence, drawn by sctune's own suggester: a larger --configurations goes on where a smaller one
ended.
Development images alone are read, and a seed decides what it decides in a search. The options of the data are those
of `sctune search`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from measure_common import RESULTS, Row, append_row, digest_of, load_average, read_rows, run_resumable
from optuna.trial import TrialState
from table_rows import ABOUT, KEPT, encoded, rectangle, table_of

from sctune.config import Task, TrialConfig
from sctune.errors import ConfigError, NonFiniteError, SctuneError
from sctune.metrics.objective import find_objective, metric_of
from sctune.report import EpochReport, merge_reports
from sctune.search.plan.options import SearchOptions
from sctune.search.plan.plan import Plan, make_plan
from sctune.search.plan.priors import prior_of_paper
from sctune.search.simulate.table import load_table
from sctune.search.space.definition import Space, Values
from sctune.search.suggest.beliefs import start_points
from sctune.search.suggest.samplers import make_sampler
from sctune.search.suggest.suggester import Suggester
from sctune.train.trainer import Trainer

TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class Job:
    """One training: a configuration on the tasks of a seed. data: name of the data; values: as the space gives them;
    tree: the whole configuration.
    """

    data: str
    number: int
    seed: int
    values: Values
    tree: Mapping[str, Any]
    tasks: tuple[Task, ...]
    objective: str

    @property
    def config(self) -> TrialConfig:
        return TrialConfig.load(self.tree)

    @property
    def key(self) -> str:
        # wherever the data lie
        config = self.config.for_task(self.tasks[0]).override({"data.source": self.data})
        return f"{self.number}:{self.seed}:{digest_of(config)}"


def draw(space: Space, count: int) -> list[Values]:
    """The first configurations of a table; fewer where the space has no more."""
    priors = []
    with suppress(ConfigError):  # the paper may say nothing of the space
        priors.append(prior_of_paper(space))
    sampler = make_sampler("qmc", 0, space=space)
    suggester = Suggester(space, sampler, 0, first=start_points(space, priors))
    found: list[Values] = []
    while len(found) < count and (trial := suggester.ask()) is not None:
        found.append(suggester.params(trial.number))
        # the sequence takes its dimensions from what has ended
        suggester.tell(trial.number, TrialState.COMPLETE, 0.0)
    return found


def planned(options: argparse.Namespace) -> Plan:
    """The checks of a search, and its tasks: those of a seed together."""
    given = {
        "space": options.space,
        "profile": options.profile,
        "data": options.data,
        "normal": options.normal,
        "anomalous": options.anomalous,
        "category": options.category,
        "setting": options.setting,
        "known_class": options.known_class,
        "n_anomalies": options.n_anomalies,
        "selection": options.selection,
        "partition_seed": options.partition_seed,
        "objective": options.objective,
        "set": options.set,
        "allow_duplicates": options.allow_duplicates,
        "seeds": ",".join(map(str, options.seeds)),
        "replicates": len(options.seeds),
        "scheduler": "none",
        "references": False,
    }
    return make_plan(SearchOptions.from_command(given), has_gpu=False)


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """All trainings, seed by seed; writes the first row where it is not there. Raises SctuneError."""
    plan = planned(options)
    space, manifest = plan.space, plan.manifest
    _begin(options.out, about_row(options.name, plan))
    configurations = draw(space, options.configurations)
    trees = [space.config(values).model_dump() for values in configurations]
    return [
        Job(
            plan.manifest.data.name,
            number,
            seed,
            values,
            trees[number],
            _of_seed(manifest.tasks, seed),
            manifest.objective,
        )
        for seed in options.seeds
        for number, values in enumerate(configurations)
    ]


def _of_seed(tasks: Sequence[Task], seed: int) -> tuple[Task, ...]:
    return tuple(task for task in tasks if task.seed == seed)


def about_row(name: str, plan: Plan) -> Row:
    """What all trainings share; no path of this machine."""
    config = plan.space.base.override({"seed": TrialConfig().seed}).model_dump()
    config["data"]["source"] = plan.manifest.data.name
    config["model"]["weights"] = Path(config["model"]["weights"]).name
    about = {
        "key": ABOUT,
        "name": name,
        "space": plan.space.to_dict(),
        "config": config,
        "profile": plan.manifest.profile,
        "objective": plan.manifest.objective,
        "selection": plan.manifest.selection.mode,
        "data": plan.manifest.data.model_dump(),
    }
    # as it is read again
    return dict(json.loads(json.dumps(about)))


def _begin(path: Path, about: Row) -> None:
    """Raises ConfigError where the rows are of other trainings."""
    stored = next((row for row in read_rows(path) if row["key"] == ABOUT), None)
    if stored is None:
        append_row(path, about)
        return
    for field in ("name", "space", "config", "profile", "objective", "selection"):
        if stored[field] != about[field]:
            raise ConfigError(
                f"{path} holds trainings of another {field}; give another --rows, or the options of before"
            )


def train(job: Job) -> Row:
    """One training of all tasks of a seed; value: its last objective. A loss that is no number is told in `failed`."""
    _forget_peak()
    started = process_time()
    config, objective = job.config, find_objective(job.objective)
    trainers = {task.key: Trainer(config, task, objective=objective) for task in job.tasks}
    reports: list[EpochReport] = []
    # of one thread: what a free core would take by the clock, however busy this machine is
    ticks = [process_time()]
    failed = None
    try:
        while not reports or not reports[-1].last:
            reports.append(merge_reports({key: trainer.run_epoch() for key, trainer in trainers.items()}))
            ticks.append(process_time())
    except NonFiniteError as problem:
        failed = str(problem)
    metric = metric_of(job.objective)
    return {
        "key": job.key,
        "number": job.number,
        "seed": job.seed,
        "params": job.values,
        "value": reports[-1].value if reports else 0.0,
        "values": [report.metrics[metric] for report in reports],
        "seconds": np.diff(ticks).tolist(),
        "cpu_seconds": process_time() - started,
        "memory_mb": _peak_mb(),
        "tasks": [task.key for task in job.tasks],
        "labels": {key: "".join(map(str, one.selection.labels.tolist())) for key, one in trainers.items()},
        "scores": {
            key: encoded([report.scores[key] for report in reports]) for key in (reports[-1].scores if reports else ())
        },
        "failed": failed,
        "load": load_average(),
    }


def _forget_peak() -> None:
    """Where Linux lets a process: else the peak is that of all trainings of the process so far."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show(jobs: Sequence[Job], rows: Sequence[Row]) -> None:
    """How far it is, and what it takes."""
    keys = {job.key for job in jobs}
    done = [row for row in rows if row["key"] in keys]
    if not done:
        return
    seconds = float(np.median([row["cpu_seconds"] for row in done]))
    numbers, seeds = rectangle(done)
    left = len(jobs) - len(done)
    failed = sum(bool(row["failed"]) for row in done)
    print(
        f"{len(done)} of {len(jobs)} trainings, {seconds:.0f} CPU seconds each (median), about "
        f"{left * seconds / 3600:.1f} CPU hours left; whole: {len(numbers)} configurations x {len(seeds)} seeds; "
        f"{failed} failed"
    )


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = found.add_subparsers(dest="command", required=True)
    trains = commands.add_parser("train", help="train what is not there yet")
    trains.add_argument("--configurations", type=int, default=40)
    trains.add_argument("--seeds", type=int, nargs="+", default=list(range(101, 113)))
    trains.add_argument("--space", default="full")
    trains.add_argument("--profile", default="cpu")
    for name in ("data", "normal", "anomalous", "n-anomalies", "objective", "partition-seed"):
        trains.add_argument(f"--{name}", help="as of sctune search")
    trains.add_argument("--category", action="append")
    trains.add_argument("--known-class", action="append")
    trains.add_argument("--setting", default="general")
    trains.add_argument("--selection", default="auto")
    trains.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    trains.add_argument("--allow-duplicates", action="store_true", help="as of sctune search")
    trains.add_argument("--workers", type=int, default=2, help="worker processes, one torch thread each")
    packs = commands.add_parser("pack", help="make the table of what is there")
    packs.add_argument("--scores", choices=KEPT, default="last", help="after which epochs they are kept")
    packs.add_argument("--to", type=Path, help="the table; default: benchmarks/tables/NAME.npz")
    for command in (trains, packs):
        command.add_argument("--name", required=True, help="of the table")
        command.add_argument("--rows", dest="out", type=Path, help="a line for each training")
    return found


def pack(options: argparse.Namespace) -> None:
    rows = read_rows(options.out)
    table = table_of(rows, options.scores)
    path = options.to or TABLES / f"{options.name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.save(path)
    again = load_table(path).about
    print(
        f"{path}: {len(again.configurations)} configurations x {len(again.seeds)} seeds x {table.epochs} epochs of "
        f"{len(rows) - 1} trainings, {path.stat().st_size / 1e6:.2f} MB"
    )


def main(words: Sequence[str] | None = None) -> None:
    options = parser().parse_args(words)
    options.out = options.out or RESULTS / f"table_{options.name}_rows.jsonl"
    try:
        if options.command == "pack":
            pack(options)
        else:
            run_resumable(options, jobs_of, train, show)
    except SctuneError as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
