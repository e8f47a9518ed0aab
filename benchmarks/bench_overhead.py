"""What a search costs beside the training: wall time per trial, and time on the driver's thread per report.

Whole studies run through `run_search` (Ray Tune with reused actors, the record, MLflow on SQLite); only the epochs
are short sleeps, and methods of the searcher and its observers are timed. Run: `python benchmarks/bench_overhead.py`.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sctune.search.cluster.connection import prepare_environment

prepare_environment()
os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"})

import short_trials  # noqa: E402  (Ray and MLflow read the environment when they are imported)

from sctune.paths import studies_folder  # noqa: E402
from sctune.search.plan.options import SearchOptions  # noqa: E402
from sctune.search.run import driver, launch  # noqa: E402
from sctune.search.run.progress import SearchProgress  # noqa: E402
from sctune.search.run.retention import CheckpointKeeper  # noqa: E402
from sctune.search.run.searcher import StudySearcher  # noqa: E402
from sctune.search.study.record import reports_of  # noqa: E402
from sctune.search.study.study import Study  # noqa: E402
from sctune.tracking.callback import TrackingCallback  # noqa: E402
from sctune.trial import trainable  # noqa: E402

EPOCHS, SLOTS = 8, 2
TARGET_TRIAL_S, TARGET_CALLBACK_MS = 0.5, 1.0
TRIALS = {"empty": short_trials.EmptyTrial, "built": short_trials.BuiltTrial}

Calls = dict[str, list[tuple[float, float]]]
"""Part of the driver -> start and seconds of each call."""

WATCHED: dict[str, tuple[type, tuple[str, ...]]] = {
    "searcher": (StudySearcher, ("suggest", "on_trial_result", "on_trial_complete")),
    "tracking": (TrackingCallback, ("on_start", "on_report", "on_end")),
    "retention": (CheckpointKeeper, ("on_start", "on_report", "on_end")),
    "progress": (SearchProgress, ("on_start", "on_report", "on_end")),
}


@dataclass(frozen=True)
class Outcome:
    """Seconds: `wall` from the first report to the end of the last trial, `training` the epochs' own in it."""

    trials: int
    start: float
    wall: float
    training: float
    finish: float

    @property
    def per_trial(self) -> float:
        """Wall time that training in all slots does not explain; a slot idles SLOTS times as long."""
        return (self.wall - self.training / SLOTS) / self.trials


def watch(calls: Calls) -> None:
    """Time what runs on the driver's thread, for the rest of this process."""

    def timed(owner: Any, name: str, label: str) -> None:
        method = getattr(owner, name)

        @functools.wraps(method)
        def call(*args: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **named)
            finally:
                calls[label].append((started, time.perf_counter() - started))

        setattr(owner, name, call)

    for part, (owner, names) in WATCHED.items():
        for name in names:
            timed(owner, name, f"{part}.{name}")
    timed(launch, "tune_trials", "tune")


def search(kind: str, sampler: str, trials: int, calls: Calls) -> Outcome:
    """One study from plan to result; the record tells how long its epochs took."""
    calls.clear()
    # what the driver hands to Ray
    trainable.SaliencyCutTrainable = TRIALS[kind]  # type: ignore[misc]
    name = f"{kind}-{sampler}"
    options = SearchOptions(
        name=name,
        profile="cpu",
        trials=trials,
        sampler=sampler,
        scheduler="none",
        overrides={"budget.epochs": EPOCHS, "model.normal_head": "mlp"},
        max_concurrent=SLOTS,
    )
    driver.run_search(options, Console(file=io.StringIO()))
    finished = time.perf_counter()
    (started, seconds), first = calls["tune"][0], calls["tracking.on_report"][0][0]
    record = Study.open(studies_folder(), name).record
    rows = record.load()
    record.close()
    states = {row.state.name for row in rows}
    if states != {"COMPLETE"} or len(rows) != trials:
        raise SystemExit(f"{name}: {len(rows)} trials ended as {sorted(states)}; not measured")
    epochs = [report["metrics"]["seconds"] for row in rows for report in reports_of(row).values()]
    # the first epoch of each slot ran before the clock started
    training = sum(epochs) - SLOTS * statistics.mean(epochs)
    ended = started + seconds
    return Outcome(trials, first - started, ended - first, training, finished - ended)


def show(name: str, outcome: Outcome, calls: Calls) -> None:
    met = "met" if outcome.per_trial <= TARGET_TRIAL_S else "MISSED"
    print(
        f"{name}: {outcome.trials} trials x {EPOCHS} epochs, {SLOTS} slots; {outcome.wall:.1f} s from the first report "
        f"to the last trial's end, of it {outcome.training / SLOTS:.1f} s training\n"
        f"  beside training {outcome.per_trial:.3f} s a trial (target {TARGET_TRIAL_S}: {met}), a slot idles "
        f"{SLOTS * outcome.per_trial:.3f} s a trial; apart: {outcome.start:.1f} s to the first report, "
        f"{outcome.finish:.1f} s for pictures, model and the last of MLflow"
    )
    reports = milliseconds(calls, "tracking.on_report")
    met = "met" if statistics.mean(reports) < TARGET_CALLBACK_MS and max(reports) < TARGET_CALLBACK_MS else "MISSED"
    print(f"  tracking callback per report (target mean and max {TARGET_CALLBACK_MS:g} ms: {met}): {spread(reports)}")
    for method in WATCHED["searcher"][1]:
        print(f"  searcher.{method}: {spread(milliseconds(calls, f'searcher.{method}'))}")
    totals = {
        part: sum(sum(milliseconds(calls, f"{part}.{method}")) for method in methods)
        for part, (_, methods) in WATCHED.items()
    }
    shown = ", ".join(f"{part} {total:.0f} ms" for part, total in totals.items())
    print(f"  driver's thread in all (the searcher's time holds the others'): {shown}", flush=True)


def milliseconds(calls: Calls, label: str) -> list[float]:
    return [1000 * seconds for _, seconds in calls[label]]


def spread(values: list[float]) -> str:
    ordered = sorted(values)
    p99 = ordered[round(0.99 * (len(ordered) - 1))]
    return (
        f"{len(ordered)} calls, mean {statistics.mean(ordered):.3f} ms, median {statistics.median(ordered):.3f}, "
        f"p99 {p99:.2f}, max {ordered[-1]:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--kind", choices=tuple(TRIALS), action="append", help="default: both")
    parser.add_argument("--sampler", action="append", help="default: random and tpe")
    arguments = parser.parse_args()
    calls: Calls = defaultdict(list)
    watch(calls)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCTUNE_HOME"] = str(Path(folder) / "home")
        began = time.perf_counter()
        # one Ray for all studies, as with --address; ending it is left to this block
        with driver.session(None):
            print(f"Ray started in {time.perf_counter() - began:.1f} s; load {os.getloadavg()[0]:.1f}", flush=True)
            for kind in arguments.kind or TRIALS:
                for sampler in arguments.sampler or ("random", "tpe"):
                    outcome = search(kind, sampler, arguments.trials, calls)
                    show(f"{kind}, {sampler}", outcome, calls)


if __name__ == "__main__":
    main()
