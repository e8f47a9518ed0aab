"""Does a report cost more in a large study than in a small one? Time per report and the driver's memory.

Whole searches of no-op trials (8 reports each, 2 slots, sampler `random`, record on SQLite, a real MLflow server),
each in a process of its own; bare Ray Tune beside them shows what is Ray's. Then TPE's ask over as many trials.
`direct`: the searcher with record, tracking, display, logs and keeper, driven by a loop in Ray's place and as fast as
it goes. Run: `python benchmarks/bench_growth.py --trials 200 1000 5000` (5,000 trials take minutes; default: 200 and
1000), or `--arms direct --trials 200 1000 5000` without Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sctune.search.cluster.connection import prepare_environment

prepare_environment()
os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"})

from noop_runs import Clock  # noqa: E402  (Ray and MLflow read the environment when they are imported)
from noop_trials import EPOCHS  # noqa: E402

WINDOW = 200 * EPOCHS
"""Reports at the start and at the end of a search that are compared."""

TARGET, TARGET_KB = 1.2, 20
ARMS = ("sctune", "bare", "direct")


def measure(arm: str, trials: int) -> dict[str, Any]:
    """One search in this process. ms: per report; thread_ms: CPU of the driver's thread; mb: the driver's memory."""
    import noop_runs

    from sctune.search.run import driver

    noop_runs.watch_controller()
    # what MLflow does not have yet at the end is no part of this
    noop_runs.DRAIN_S = 0.0
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        os.environ["SCTUNE_HOME"] = str(folder / "home")
        with driver.session(None), noop_runs.mlflow_server(folder) as uri:
            noop_runs.run_bare(4, folder / "warm-up")
            begun = noop_runs.resident_bytes()
            clock = noop_runs.run_bare(trials, folder / "bare") if arm == "bare" else None
            clock = clock or noop_runs.run_sctune(trials, uri, "growth")
    return summary(arm, trials, clock, begun)


def measure_direct(trials: int) -> dict[str, Any]:
    """The same without Ray and without a server: a loop tells the searcher what Ray would."""
    import noop_runs

    with tempfile.TemporaryDirectory() as text:
        os.environ["SCTUNE_HOME"] = str(Path(text) / "home")
        begun = noop_runs.resident_bytes()
        return summary("direct", trials, noop_runs.run_direct(trials), begun)


def summary(arm: str, trials: int, clock: Clock, begun: int) -> dict[str, Any]:
    window = min(WINDOW, len(clock.handled) // 2)
    gaps = [later - earlier for earlier, later in zip(clock.handled, clock.handled[1:], strict=False)]
    busy = [later - earlier for earlier, later in zip(clock.busy, clock.busy[1:], strict=False)]
    return {
        "arm": arm,
        "trials": trials,
        "ms": 1000 * clock.searching / len(clock.handled),
        "first_ms": 1000 * statistics.mean(gaps[:window]),
        "last_ms": 1000 * statistics.mean(gaps[-window:]),
        "thread_ms": 1000 * clock.thread / len(clock.handled),
        "thread_first_ms": 1000 * statistics.mean(busy[:window]),
        "thread_last_ms": 1000 * statistics.mean(busy[-window:]),
        "mb_before": begun / 2**20,
        "mb_after": clock.memory[-1] / 2**20,
        "undelivered": clock.undelivered,
        "load": os.getloadavg()[0],
    }


def in_own_process(arm: str, trials: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", arm, "--trials", str(trials)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['arm']}, {row['trials']} trials: {row['ms']:.2f} ms a report (first {row['first_ms']:.2f}, last "
        f"{row['last_ms']:.2f}), CPU of the driver's thread {row['thread_ms']:.2f} ms (first "
        f"{row['thread_first_ms']:.2f}, last {row['thread_last_ms']:.2f}); memory {row['mb_before']:.0f} -> "
        f"{row['mb_after']:.0f} MB; {row['undelivered']} events not in MLflow at the end; load {row['load']:.1f}",
        flush=True,
    )


def show_growth(rows: list[dict[str, Any]]) -> None:
    """From the smallest to the largest search of an arm."""
    small, large = rows[0], rows[-1]
    if small is not large:
        for name, what in (("ms", "time per report"), ("thread_ms", "CPU of the driver's thread per report")):
            ratio = large[name] / small[name]
            met = "met" if ratio <= TARGET else "MISSED"
            print(f"{small['arm']}: {what}, {large['trials']} over {small['trials']} trials: {ratio:.2f} ({met})")
        per_trial = 1024 * (large["mb_after"] - small["mb_after"]) / (large["trials"] - small["trials"])
        met = "met" if per_trial <= TARGET_KB else "MISSED"
        print(f"{small['arm']}: memory of the driver per further trial: {per_trial:.1f} KB ({met})", flush=True)


def show_asks(counts: list[int]) -> None:
    """An ask of TPE with so many ended trials, the suggester driven directly, without Ray."""
    import optuna

    from sctune.config import load_profile
    from sctune.search.space.definition import load_space
    from sctune.search.suggest.samplers import make_sampler
    from sctune.search.suggest.suggester import Suggester

    space = load_space("threshold_patch", load_profile("cpu"), {})
    for sampler in ("random", "tpe"):
        suggester = Suggester(space, make_sampler("random", 0), 0)
        for count in counts:
            while suggester.n_trials < count:
                trial = suggester.ask()
                assert trial is not None
                for epoch in range(1, EPOCHS + 1):
                    suggester.report(trial.number, epoch, 0.5 + 0.1 * (trial.number % 5))
                suggester.tell(trial.number, optuna.trial.TrialState.COMPLETE, 0.5 + 0.1 * (trial.number % 5))
            other = Suggester(space, make_sampler(sampler, 1), 0, suggester.trials())
            seconds = []
            for _ in range(7):
                begun = time.process_time()
                other.ask()
                seconds.append(time.process_time() - begun)
            middle = 1000 * statistics.median(seconds)
            print(f"{sampler}: an ask after {count} trials takes {middle:.1f} ms of the processor", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["sctune", "bare"])
    parser.add_argument("--one", choices=ARMS, help="measure one search in this process, as JSON")
    arguments = parser.parse_args()
    counts = sorted(arguments.trials)
    if arguments.one:
        row = measure_direct(counts[0]) if arguments.one == "direct" else measure(arguments.one, counts[0])
        print(json.dumps(row))
        return
    for arm in arguments.arms:
        rows = []
        for trials in counts:
            rows.append(in_own_process(arm, trials))
            show(rows[-1])
        show_growth(rows)
    show_asks(counts)


if __name__ == "__main__":
    main()
