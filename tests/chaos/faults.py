"""MLflow slow, hanging, refusing, answering 500, losing answers or killed in mid-batch, and the driver killed besides.

    python tests/chaos/faults.py --runs 24 --seed 0

Each run is a study of no-op trials that a driver in a process of its own records and shows in a real MLflow server,
without Ray: the faults are drawn over its whole life, and its queue is often too small. A killed driver is followed by
another one on the same study; where that one says that something is left, `sctune sync` is run. Then record and MLflow
must agree (`status --check`), and the driver may not have waited: the longest `put` is in the table. Exit code 1 when
anything was lost or doubled.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sctune.search.reconcile.check import check_stored  # noqa: E402
from sctune.search.reconcile.sync import sync  # noqa: E402
from sctune.tracking.server import check_tracking, default_tracking_uri  # noqa: E402
from tests.mlflow_gate import Gate  # noqa: E402
from tests.mlflow_server import MlflowServer  # noqa: E402

FAULTS = ("slow", "hang", "refuse", "error", "lose", "kill")
DRIVERS = ("none", "kill -9", "kill -9", "SIGTERM")
TRIALS, EPOCHS, PAUSE_S = 12, 6, 0.04
NAME = "played"
SYNC_S = 120.0
DRIVER = Path(__file__).with_name("faults_driver.py")


@dataclass(frozen=True)
class Outcome:
    """One run. arrived: MLflow had all of it before any `sync`. put_ms: the longest time that the driver waited."""

    fault: str
    driver: str
    arrived: bool
    lost: int
    doubled: int
    put_ms: float
    problems: tuple[str, ...]


class Drivers:
    """Starts drivers by fork, from a process that has imported everything: that alone takes longer than a run."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **words: Any) -> int:
        assert self._parent.stdin is not None and self._parent.stdout is not None
        print(json.dumps(words), file=self._parent.stdin, flush=True)
        return int(self._parent.stdout.readline())

    def close(self) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(60)


class Driver:
    """One driver of a study; what it says goes to `driver.out` of its root."""

    def __init__(self, drivers: Drivers, root: Path, uri: str, queue: int) -> None:
        self._drivers, self._out = drivers, root / "driver.out"
        self._out.unlink(missing_ok=True)
        words = [str(root), uri, str(queue), str(TRIALS), str(EPOCHS), str(PAUSE_S)]
        self._pid = drivers.ask(arguments=words, out=str(self._out))
        limit = time.monotonic() + 300
        while "begun" not in self.said and time.monotonic() < limit:
            time.sleep(0.05)

    @property
    def said(self) -> str:
        return self._out.read_text() if self._out.exists() else ""

    def signal(self, number: int) -> None:
        os.kill(self._pid, number)  # its parent has not waited for it: the number is its own

    def end(self) -> dict[str, Any] | None:
        """What it told at its end, None if it was killed or failed."""
        code = self._drivers.ask(wait=self._pid)
        return json.loads(self.said.splitlines()[-1]) if code == 0 else None


def disturb(
    drivers: Drivers, root: Path, server: MlflowServer, fault: str, driver: str, draw: random.Random
) -> Outcome:
    root.mkdir()
    gate = Gate(server.uri)
    queue = draw.choice([10_000, 10_000, 30, 8])
    try:
        process = Driver(drivers, root, gate.uri, queue)
        # a whole run takes some five seconds
        time.sleep(draw.uniform(0.0, 2.5))
        break_down(fault, gate, server)
        time.sleep(draw.uniform(0.2, 4.0))
        numbers = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
        if driver in numbers:
            process.signal(numbers[driver])
        healed_late = driver != "none" and draw.random() < 0.5
        if not healed_late:
            heal(fault, gate, server)
        told = [process.end()]
        if told[0] is None or not told[0]["done"]:
            process = Driver(drivers, root, gate.uri, queue)
            if healed_late:
                time.sleep(draw.uniform(0.5, 2.0))
                heal(fault, gate, server)
            told.append(process.end())
        elif healed_late:
            heal(fault, gate, server)
        return judge(root, fault, driver, told)
    finally:
        gate.close()


def break_down(fault: str, gate: Gate, server: MlflowServer) -> None:
    gate.let_go.clear()
    if fault == "kill":
        server.stop()
    else:
        gate.mode = fault


def heal(fault: str, gate: Gate, server: MlflowServer) -> None:
    if fault == "kill":
        server.start()
    gate.mode = "pass"
    gate.let_go.set()


def judge(root: Path, fault: str, driver: str, told: Sequence[dict[str, Any] | None]) -> Outcome:
    problems = [] if told[-1] is not None else [f"the last driver failed: {(root / 'driver.out').read_text()[-500:]}"]
    before = check_stored(root, NAME)
    said = told[-1] is not None and told[-1]["left"]
    if not before.agrees and not said:
        problems.append(f"not told: {before.differences[0].line}")
    if not before.agrees:
        result = sync(NAME, root, SYNC_S)
        problems += result.left
    after = check_stored(root, NAME)
    problems += [one.line for one in after.differences]
    lost = sum(one.late for one in after.differences)
    put_ms = max((one["put_ms"] for one in told if one is not None), default=0.0)
    return Outcome(fault, driver, before.agrees, lost, len(after.differences) - lost, put_ms, tuple(problems))


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line per fault and what became of the driver."""
    head = [
        "MLflow",
        "driver",
        "runs",
        "all there at the end",
        "lost",
        "doubled or wrong",
        "longest wait of the driver",
    ]
    rows = [head, ["---"] * len(head)]
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.fault, outcome.driver), []).append(outcome)
        groups.setdefault(("~all", ""), []).append(outcome)
    for (fault, driver), group in sorted(groups.items()):
        sums = [len(group), *(sum(getattr(one, name) for one in group) for name in ("arrived", "lost", "doubled"))]
        longest = f"{max(one.put_ms for one in group):.1f} ms"
        rows.append([fault.removeprefix("~"), driver, *map(str, sums), longest])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="faults."))
    draw = random.Random(arguments.seed)
    check_tracking(default_tracking_uri(root))
    server = MlflowServer(root)
    server.start()
    outcomes, drivers = [], Drivers()
    try:
        for number in range(arguments.runs):
            fault, driver = FAULTS[number % len(FAULTS)], draw.choice(DRIVERS)
            began = time.monotonic()
            outcome = disturb(drivers, root / f"run{number:03d}", server, fault, driver, draw)
            outcomes.append(outcome)
            seconds = time.monotonic() - began
            said = "; ".join(outcome.problems) or ("well" if outcome.arrived else "well, after a sync")
            print(f"run {number:3d} {fault:7s} driver {driver:8s} {seconds:.0f} s  {said}", flush=True)
    finally:
        drivers.close()
        server.stop()
    print(table(outcomes))
    shutil.rmtree(root, ignore_errors=True)
    sys.exit(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    main()
