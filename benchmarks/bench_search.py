"""How fast is a search beside bare Ray Tune, and beside Ray's own Optuna and MLflow parts?

No-op trials of 8 reports in 2 slots with reused actors, sampler `random`; sctune with its record on SQLite and with
tracking on a real MLflow server, which serves Ray's MLflowLoggerCallback too. The arms take turns.
Run: `python benchmarks/bench_search.py` (about 5 minutes on 2 cores).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from sctune.search.cluster.connection import prepare_environment

prepare_environment()
os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"})

import noop_runs  # noqa: E402  (Ray and MLflow read the environment when they are imported)
from noop_runs import Clock  # noqa: E402
from noop_trials import EPOCHS  # noqa: E402

from sctune.search.run import driver  # noqa: E402
from sctune.search.suggest.suggester import Suggester  # noqa: E402

BARE_TARGET, PARTS_TARGET = 1.15, 3.0


def compare_with_bare(rounds: int, trials: int, uri: str, folder: Path) -> None:
    ours: list[Clock] = []
    bare: list[Clock] = []
    for turn in range(rounds):
        # each arm is first in every second round
        for arm in ("ours", "bare") if turn % 2 else ("bare", "ours"):
            if arm == "bare":
                bare.append(noop_runs.run_bare(trials, folder / f"bare-{turn}"))
            else:
                ours.append(noop_runs.run_sctune(trials, uri, f"long-{turn}"))
        show_round(turn, "bare", bare[-1], ours[-1])
    ratios = [own.searching / other.searching for own, other in zip(ours, bare, strict=True)]
    of_fastest = min(clock.searching for clock in ours) / min(clock.searching for clock in bare)
    show("time of sctune / bare Ray Tune", ratios, of_fastest, trials, f"at most {BARE_TARGET}")
    drains = [clock.drain for clock in ours]
    print(f"  apart: {statistics.median(drains):.1f} s until MLflow had the rest ({ours[-1].undelivered} events)")


def compare_with_parts(rounds: int, trials: int, uri: str, folder: Path) -> None:
    ours: list[Clock] = []
    parts: list[Clock] = []
    for turn in range(rounds):
        for arm in ("ours", "parts") if turn % 2 else ("parts", "ours"):
            if arm == "parts":
                parts.append(noop_runs.run_ray_parts(trials, folder / f"parts-{turn}", uri))
            else:
                ours.append(noop_runs.run_sctune(trials, uri, f"short-{turn}"))
        show_round(turn, "Ray's parts", parts[-1], ours[-1])
    ratios = [other.searching / own.searching for own, other in zip(ours, parts, strict=True)]
    of_fastest = min(clock.searching for clock in parts) / min(clock.searching for clock in ours)
    show("time of Ray's parts / sctune", ratios, of_fastest, trials, f"at least {PARTS_TARGET:g}")
    whole = [other.searching / (own.searching + own.drain) for own, other in zip(ours, parts, strict=True)]
    print(f"  until MLflow had everything: {statistics.median(whole):.2f} ({min(whole):.2f} to {max(whole):.2f})")


def show_round(turn: int, name: str, other: Clock, ours: Clock) -> None:
    print(
        f"  round {turn + 1}: {name} {other.searching:.2f} s, sctune {ours.searching:.2f} s "
        f"(CPU of the driver's thread {other.thread:.2f} and {ours.thread:.2f} s; {ours.undelivered} events left to "
        f"MLflow, {ours.drain:.1f} s); load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def show(what: str, ratios: list[float], of_fastest: float, trials: int, target: str) -> None:
    print(
        f"{what}: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), of the fastest "
        f"{of_fastest:.2f}; target {target}; {len(ratios)} rounds of {trials} trials x {EPOCHS} reports",
        flush=True,
    )


def show_tpe(trials: int, uri: str) -> None:
    """TPE's ask in a search of its own: most of what a trial costs the driver then."""
    seconds: list[float] = []
    ask = Suggester.ask

    def timed(self: Suggester) -> object:
        begun = time.perf_counter()
        try:
            return ask(self)
        finally:
            seconds.append(time.perf_counter() - begun)

    Suggester.ask = timed  # type: ignore[assignment, method-assign]
    try:
        clock = noop_runs.run_sctune(trials, uri, "tpe", "tpe")
    finally:
        Suggester.ask = ask  # type: ignore[method-assign]
    asks = sorted(1000 * value for value in seconds)
    print(
        f"TPE: ask median {statistics.median(asks):.1f} ms, longest {asks[-1]:.1f} ms, over {trials} trials; "
        f"the search took {clock.searching:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="of each search beside bare Ray Tune")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts-trials", type=int, default=20, help="of each search beside Ray's parts")
    parser.add_argument("--parts-rounds", type=int, default=3)
    parser.add_argument("--tpe-trials", type=int, default=100)
    arguments = parser.parse_args()
    noop_runs.watch_controller()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        os.environ["SCTUNE_HOME"] = str(folder / "home")
        began = time.perf_counter()
        # one Ray for all searches, as with --address
        with driver.session(None), noop_runs.mlflow_server(folder) as uri:
            print(f"Ray and MLflow started in {time.perf_counter() - began:.1f} s", flush=True)
            noop_runs.run_bare(4, folder / "warm-up")
            if arguments.rounds:
                compare_with_bare(arguments.rounds, arguments.trials, uri, folder)
            if arguments.parts_rounds:
                compare_with_parts(arguments.parts_rounds, arguments.parts_trials, uri, folder)
            if arguments.tpe_trials:
                show_tpe(arguments.tpe_trials, uri)
        print(f"all in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
