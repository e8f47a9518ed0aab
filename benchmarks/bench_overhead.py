"""What a search costs beside the training: wall time per trial, and time on the driver's thread per report.

Studies run through the real driver (searcher, record, tracking to MLflow on SQLite, Ray Tune with reused actors);
only the epochs are short sleeps. Run alone: `python benchmarks/bench_overhead.py`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sctune.search.cluster import prepare_environment

prepare_environment()
os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"})

import short_trials  # noqa: E402  (Ray and MLflow read the environment when they are imported)

from sctune.search import driver  # noqa: E402
from sctune.search.cluster import Resources  # noqa: E402
from sctune.search.options import SearchOptions  # noqa: E402
from sctune.search.plan import Plan  # noqa: E402
from sctune.search.progress import SearchProgress  # noqa: E402
from sctune.search.record import reports_of  # noqa: E402
from sctune.search.retention import CheckpointKeeper  # noqa: E402
from sctune.search.study import Study  # noqa: E402
from sctune.tracking.callback import TrackingCallback  # noqa: E402
from sctune.tracking.writer import Writer  # noqa: E402
from sctune.trial import trainable  # noqa: E402

EPOCHS, SLOTS = 8, 2
TARGET_TRIAL_S, TARGET_CALLBACK_S = 0.5, 1e-3
TRIALS = {"empty": short_trials.EmptyTrial, "built": short_trials.BuiltTrial}


@dataclass(frozen=True)
class Outcome:
    """Seconds: `wall` from the first report to the end of the last trial, `training` the epochs' own in it."""

    trials: int
    start: float
    wall: float
    training: float
    drain: float

    @property
    def per_trial(self) -> float:
        """Wall time that training in all slots does not explain."""
        return (self.wall - self.training / SLOTS) / self.trials

    @property
    def per_slot(self) -> float:
        """Time in which a slot did not train, per trial: SLOTS times as much."""
        return SLOTS * self.per_trial


def run(plan: Plan, resources: Resources, name: str) -> Outcome:
    """One launch as in the driver, with clocks around observers and searcher; prints what they measured."""
    study = Study.create(plan.study_root, plan.manifest.model_copy(update={"name": name}))
    manifest, record = study.manifest, study.record
    writer = Writer(manifest.tracking_uri, study.folder / "tracking.jsonl")
    tracking = TrackingCallback(writer, driver._facts(study, plan.splits))
    quiet = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    progress = SearchProgress(manifest.trials, EPOCHS, resources.concurrent, {}, quiet)
    keeper = CheckpointKeeper(manifest.storage_path, manifest.keep_best, [])
    observers = {
        "tracking": short_trials.TimedObserver(tracking),
        "retention": short_trials.TimedObserver(keeper),
        "progress": short_trials.TimedObserver(progress),
    }
    searcher = short_trials.TimedSearcher(manifest, plan.space, record, list(observers.values()))
    study.add_launch(driver._now())
    tracking.on_study_start()
    started = time.perf_counter()
    driver._tune(study, plan.space, plan.splits, resources, searcher)
    ended = time.perf_counter()
    keeper.close()
    left = writer.drain(120)
    drained = time.perf_counter()
    trials = record.load()
    states = {trial.state.name for trial in trials}
    if left or states != {"COMPLETE"} or len(trials) != manifest.trials:
        raise SystemExit(f"{name}: {len(trials)} trials ended as {sorted(states)}, {left} events left; not measured")
    first = observers["tracking"].reports.first
    assert first is not None
    seconds = [report["metrics"]["seconds"] for trial in trials for report in reports_of(trial).values()]
    writer.close()
    record.close()
    # the first epoch of each slot ran before the clock started
    training = sum(seconds) - SLOTS * statistics.mean(seconds)
    outcome = Outcome(len(trials), first - started, ended - first, training, drained - ended)
    show(name, outcome, searcher, observers, tracking)
    return outcome


def show(
    name: str,
    outcome: Outcome,
    searcher: short_trials.TimedSearcher,
    observers: dict[str, short_trials.TimedObserver],
    tracking: TrackingCallback,
) -> None:
    print(
        f"{name}: {outcome.trials} trials x {EPOCHS} epochs in {SLOTS} slots, {outcome.wall:.1f} s from the first "
        f"report on (it came after {outcome.start:.1f} s), of it training {outcome.training:.1f} s of slots\n"
        f"  beside training {outcome.per_trial:.3f} s a trial ({outcome.per_slot:.3f} s of its slot); "
        f"MLflow had everything {outcome.drain:.1f} s after the end"
    )
    reports = observers["tracking"].reports.seconds
    print(f"  tracking callback, {len(reports)} reports: {spread(reports)}")
    mean = 1000 * tracking.total_seconds / tracking.calls
    print(f"  its own count, {tracking.calls} calls: mean {mean:.3f} ms, max {1000 * tracking.max_seconds:.2f} ms")
    for part, clock in searcher.clocks.items():
        print(f"  searcher, {part}: {len(clock.seconds)} calls, {spread(clock.seconds)}")
    total = {part: sum(observer.all.seconds) for part, observer in observers.items()}
    whole = sum(sum(clock.seconds) for clock in searcher.clocks.values())
    shown = ", ".join(f"{part} {1000 * value:.0f} ms" for part, value in total.items())
    print(f"  on the driver's thread in all: searcher {whole:.2f} s, of it {shown}", flush=True)


def spread(seconds: list[float]) -> str:
    ordered = sorted(1000 * value for value in seconds)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return f"mean {statistics.mean(ordered):.3f} ms, median {statistics.median(ordered):.3f}, p99 {p99:.2f}, max {ordered[-1]:.2f}"


def options(trials: int, sampler: str) -> SearchOptions:
    return SearchOptions(
        name=f"base-{sampler}",
        profile="cpu",
        trials=trials,
        sampler=sampler,
        scheduler="none",
        overrides={"budget.epochs": EPOCHS},
        max_concurrent=SLOTS,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--kind", choices=tuple(TRIALS), action="append", help="default: both")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCTUNE_HOME"] = str(Path(folder) / "home")
        began = time.perf_counter()
        with driver.session(None):
            print(f"Ray started in {time.perf_counter() - began:.1f} s")
            for sampler in ("random", "tpe"):
                for kind in arguments.kind or TRIALS:
                    trainable.SaliencyCutTrainable = TRIALS[kind]  # type: ignore[misc]
                    began = time.perf_counter()
                    with driver.planned(options(arguments.trials, sampler)) as (plan, resources):
                        print(f"plan checked in {time.perf_counter() - began:.1f} s")
                        outcome = run(plan, resources, f"{kind}-{sampler}")
                        met = outcome.per_trial <= TARGET_TRIAL_S
                        print(f"  target {TARGET_TRIAL_S} s a trial: {'met' if met else 'MISSED'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
