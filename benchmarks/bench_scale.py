"""How many slots can one driver serve? Its own parts (searcher, record, tracking, logs) fed by a simulated stream.

A whole launch without Ray: simulated slots report epochs in the order of a simulated clock, as fast as the driver takes
them. After each BREATH reports the stream waits until the record has everything, so that nothing piles up that on a
real cluster would not; that wait is told apart. At the end MLflow's sender is given DRAIN_S seconds to show its pace.
Run: `python benchmarks/bench_scale.py`, with `--record` and `--tracking` for databases on a server.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sctune.search.cluster.connection import prepare_environment

prepare_environment()
os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "OMP_NUM_THREADS": "1"})

import noop_runs  # noqa: E402  (Ray and MLflow read the environment when they are imported)
import numpy as np  # noqa: E402
from noop_trials import EPOCHS, StudyNoopTrial  # noqa: E402
from ray._private.dict import flatten_dict  # noqa: E402

from sctune.search.run.searcher import StudySearcher  # noqa: E402
from sctune.search.study.result import study_result  # noqa: E402

BREATH = 2000
DRAIN_S = 60.0
WINDOW = 1000
"""Trials at the start and at the end that are compared."""

RECORDED = EPOCHS + 2
"""Entries of a trial in the record, and events of it for MLflow: a start, its reports, an end."""


@dataclass
class Stream:
    """busy, thread: seconds of the clock and CPU seconds of the driver's thread for each report, its share of asking
    for trials included; asks: CPU seconds of each ask. memory: resident bytes whenever WINDOW more trials have ended.
    waited: seconds for the record. left, dropped: events for MLflow that had not arrived by then; sent: within DRAIN_S.
    """

    busy: list[float] = field(default_factory=list)
    thread: list[float] = field(default_factory=list)
    asks: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    waited: float = 0.0
    left: int = 0
    dropped: int = 0
    sent: int = 0
    drain: float = 0.0


class Feed:
    """In the place of Ray: `slots` trials at a time, an epoch of a minute or so each."""

    def __init__(self, slots: int) -> None:
        self.stream, self._slots = Stream(), slots

    def __call__(self, study: Any, space: Any, splits: Any, resources: Any, controller: Any, _published: Any) -> None:
        searcher, stream = StudySearcher(controller), self.stream
        rng = np.random.default_rng(0)
        running: list[tuple[float, str]] = []
        trials: dict[str, StudyNoopTrial] = {}
        now, begun, ended = 0.0, 0, 0
        for _ in range(self._slots):
            begun = self._start(searcher, trials, running, begun, now + 60 * rng.random())
        while running:
            now, name = heapq.heappop(running)
            result = flatten_dict(trials[name].step())
            clock, cpu = time.perf_counter(), time.thread_time()
            if result["done"]:
                del trials[name]
                searcher.on_trial_complete(name, result)
                begun = self._start(searcher, trials, running, begun, now + 60 * rng.lognormal(0, 0.2))
                ended += 1
            else:
                searcher.on_trial_result(name, result)
                heapq.heappush(running, (now + 60 * rng.lognormal(0, 0.2), name))
            stream.busy.append(time.perf_counter() - clock)
            stream.thread.append(time.thread_time() - cpu)
            if len(stream.busy) % BREATH == 0:
                waits = time.perf_counter()
                study.record.flush()
                stream.waited += time.perf_counter() - waits
            if result["done"] and ended % WINDOW == 0:
                stream.memory.append(noop_runs.resident_bytes())
        waits = time.perf_counter()
        study.record.flush()
        stream.waited += time.perf_counter() - waits

    def _start(self, searcher: StudySearcher, trials: Any, running: Any, begun: int, ready: float) -> int:
        cpu = time.thread_time()
        config = searcher.suggest(str(begun))
        if not isinstance(config, dict):
            return begun
        self.stream.asks.append(time.thread_time() - cpu)
        trials[str(begun)] = StudyNoopTrial(config)
        heapq.heappush(running, (ready, str(begun)))
        return begun + 1

    def end(
        self, study: Any, _splits: Any, _controller: Any, tracking: Any, writer: Any, seconds: float, _: Any
    ) -> Any:
        stream = self.stream
        stream.left, stream.dropped = writer.undelivered, writer.dropped
        clock = time.perf_counter()
        stream.sent = stream.left - writer.drain(DRAIN_S)
        stream.drain = time.perf_counter() - clock
        tracking.on_study_end("FINISHED", {})
        return study_result(study, study.record.load(), None, seconds, tracking_uri="")


def show(stream: Stream, trials: int, slots: int) -> None:
    reports = len(stream.busy)
    busy = sum(stream.busy)
    window = min(WINDOW, trials // 2) * EPOCHS
    print(f"{trials} trials x {EPOCHS} reports, {slots} simulated slots; load {os.getloadavg()[0]:.1f}")
    for name, values in (("clock", stream.busy), ("CPU of the driver's thread", stream.thread)):
        first, last = (1000 * float(np.mean(part)) for part in (values[:window], values[-window:]))
        print(
            f"  a report, {name}: {1000 * float(np.mean(values)):.3f} ms; the first {window // EPOCHS} trials' "
            f"{first:.3f}, the last's {last:.3f}: {last / first:.2f} times"
        )
    asks = 1000 * np.array(stream.asks)
    print(
        f"  an ask, CPU: median of the first 100 {np.median(asks[:100]):.2f} ms, last {np.median(asks[-100:]):.2f} ms"
    )
    if len(stream.memory) > 1:
        slope = (stream.memory[-1] - stream.memory[0]) / 1024 / ((len(stream.memory) - 1) * WINDOW)
        shown = ", ".join(f"{bytes_ / 2**20:.0f}" for bytes_ in stream.memory)
        print(f"  memory of the driver, each {WINDOW} trials: {shown} MB; {slope:.1f} KB a further trial")
    whole = busy + stream.waited
    print(f"  record: {RECORDED * trials / whole:.0f} entries/s; the stream waited {stream.waited:.1f} s for it")
    arrived = RECORDED * trials - stream.left - stream.dropped
    rate = stream.sent / stream.drain if stream.drain else 0.0
    print(
        f"  MLflow: {arrived / whole:.0f} events/s beside the stream, {rate:.0f} alone; {stream.left} waited at the "
        f"end, {stream.dropped} had found the queue full (they are in the record, which repairs)"
    )
    taken = {"driver": reports / busy, "driver with its record": reports / whole}
    taken |= {"MLflow's sender": rate * EPOCHS / RECORDED} if rate else {}
    print("  reports/s, and slots whose epochs take 1, 10, 60, 600 s (= reports/s x seconds):")
    for name, per_second in taken.items():
        slots_of = ", ".join(f"{per_second * seconds:,.0f}" for seconds in (1, 10, 60, 600))
        print(f"    {name}: {per_second:.0f}; {slots_of}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=1000)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--record", help="URL of the record's database; default: SQLite")
    parser.add_argument("--tracking", help="MLflow's tracking URI; default: SQLite")
    arguments = parser.parse_args()
    feed = Feed(arguments.slots)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCTUNE_HOME"] = str(Path(folder) / "home")
        noop_runs.run_stream(
            arguments.trials, arguments.slots, arguments.sampler, feed, feed.end, arguments.record, arguments.tracking
        )
        show(feed.stream, arguments.trials, arguments.slots)
        # MLflow's sender goes on into a folder that goes away
        logging.disable()


if __name__ == "__main__":
    main()
