"""Is a study on 2 and 3 hosts 2 and 3 times as fast? Trials that take their time and no processor.

Hosts are nodes of one Ray on this machine, each counted as 4 processors; a study goes through `run_search` with its
checks, record and tracking. `whole`: from the launch of Tune to the last trial's end. `running`: from when every slot
has reported to when the first one has nothing left; on this one machine the workers of all hosts start on the same
cores, which they would not. Run: `python benchmarks/bench_hosts.py`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sctune.search.cluster.connection import prepare_environment

prepare_environment()
os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"})

import noop_runs  # noqa: E402  (Ray and MLflow read the environment when they are imported)
import ray  # noqa: E402
from noop_trials import EPOCH_S, EPOCHS, SleepTrial  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from sctune.search.run import launch  # noqa: E402

SLOTS = 4
"""Of a host."""

TARGETS = {2: 1.9, 3: 2.8}


@dataclass(frozen=True)
class Timed:
    """Seconds; running: reports a second while every slot had a trial."""

    whole: float
    ideal: float
    started: float
    running: float


@contextmanager
def hosts(count: int) -> Iterator[None]:
    """A head that takes no trials, and so many nodes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=SLOTS)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def measure(count: int, trials: int, epoch_s: float) -> Timed:
    slots = SLOTS * count
    spent: list[float] = []
    tune_trials = launch.tune_trials

    def timed(*arguments: Any) -> None:
        begun = time.perf_counter()
        spent.append(begun)
        tune_trials(*arguments)

    launch.tune_trials = timed
    try:
        with hosts(count):
            clock = noop_runs.run_sctune(trials, None, f"hosts-{count}", slots=slots)
    finally:
        launch.tune_trials = tune_trials
    firsts: dict[tuple[str, int], float] = {}
    lasts: dict[tuple[str, int], float] = {}
    for worker, moment in zip(clock.workers, clock.handled, strict=True):
        firsts.setdefault(worker, moment)
        lasts[worker] = moment
    up, idle = max(firsts.values()), min(lasts.values())
    reports = sum(up < moment <= idle for moment in clock.handled)
    ideal = trials * EPOCHS * epoch_s / slots
    return Timed(clock.handled[-1] - spent[0], ideal, up - spent[0], reports / (idle - up))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=72, help="a multiple of 12 fills all hosts to the end")
    parser.add_argument("--epoch", type=float, default=1.5, help="seconds")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    os.environ[EPOCH_S] = str(arguments.epoch)
    noop_runs.watch_controller(SleepTrial)
    noop_runs.DRAIN_S = 0.0
    found: dict[int, Timed] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCTUNE_HOME"] = str(Path(folder) / "home")
        for count in arguments.hosts:
            one = found[count] = measure(count, arguments.trials, arguments.epoch)
            base = found[arguments.hosts[0]]
            print(
                f"{count} hosts of {SLOTS} slots, {arguments.trials} trials x {EPOCHS} epochs of {arguments.epoch} s: "
                f"{one.whole:.1f} s (ideal {one.ideal:.1f}; all slots running after {one.started:.1f}), "
                f"{one.running:.2f} reports/s while all run; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            if one is not base:
                ratio, target = one.running / base.running, TARGETS.get(count, 0.0)
                met = "met" if ratio >= target else "MISSED"
                print(
                    f"  running: {ratio:.2f} times as fast (target {target}: {met}); whole: "
                    f"{base.whole / one.whole:.2f} times",
                    flush=True,
                )


if __name__ == "__main__":
    main()
