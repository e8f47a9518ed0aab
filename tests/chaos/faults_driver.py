"""A driver without Ray for `faults.py`: trials that only report, recorded and shown as a launch does it.

A line of JSON on stdin {"arguments", "out"} forks one, and {"wait": PID} waits for its end; the answers are its number
and its exit code. Arguments: study root, tracking URI, room of the queue, trials, epochs, seconds per report. At
SIGTERM it stops as a launch does. Prints "begun", and at its end JSON: done, left (something is not known to be in
MLflow), put_ms.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import optuna  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

from sctune.errors import TrackingError  # noqa: E402
from sctune.report import OBJECTIVE  # noqa: E402
from sctune.search.reconcile.recorded import tracking_of  # noqa: E402
from sctune.search.reconcile.repair import repair  # noqa: E402
from sctune.search.study.record import AfterRecord, reports_of  # noqa: E402
from sctune.search.study.study import Study  # noqa: E402
from sctune.tracking import server  # noqa: E402
from sctune.tracking.callback import TrackingCallback  # noqa: E402
from sctune.tracking.writer import Writer  # noqa: E402
from tests.tracking.conftest import make_study, save_checkpoint  # noqa: E402

NAME = "played"


class Driver:
    """Goes through the trials of a study, those that an earlier driver left unfinished included."""

    def __init__(self, study: Study, tracking: TrackingCallback, trials: int, epochs: int, pause: float) -> None:
        self.study, self.tracking = study, tracking
        self.trials, self.epochs, self.pause = trials, epochs, pause
        self.stopping = False

    def run(self) -> None:
        known = {trial.number: trial for trial in self.study.record.load()}
        for number in range(self.trials):
            if self.stopping:
                return
            trial = known.get(number)
            if trial is None or not trial.state.is_finished():
                self.train(number, trial)

    def train(self, number: int, trial: Any) -> None:
        params = {"augment.threshold": 0.1 + number / 1000, "model.patch_count": 4}
        attempt = 1
        if trial is None:
            self.study.record.start(new_trial(number, params))
        else:
            attempt = trial.user_attrs["attempt"] + 1
            self.study.record.set_attrs(number, {"attempt": attempt, "launch": len(self.study.manifest.launches) - 1})
        self.tracking.on_start(number, params, attempt)
        value = 0.0
        for epoch in range(1, self.epochs + 1):
            time.sleep(self.pause)
            if self.stopping:
                return
            value = 0.5 + epoch / 100 + number / 10000
            if trial is None or epoch not in reports_of(trial):
                self.report(number, epoch, value)
        state, reason = (TrialState.PRUNED, "stopped") if number % 3 == 1 else (TrialState.COMPLETE, "all epochs done")
        self.study.record.finish(number, state, value, {"stop_reason": reason})
        self.tracking.on_end(number, state.name, value, {"stop_reason": reason})

    def report(self, number: int, epoch: int, value: float) -> None:
        metrics = {OBJECTIVE: value, "loss": 1 / (epoch + number), "seconds": 2.0}
        report = {"epoch": epoch, "epochs": self.epochs, OBJECTIVE: value, "metrics": metrics, "scores": {}}
        moment = int(time.time() * 1000)
        self.study.record.report(number, report, moment)
        self.tracking.on_report(number, report, moment)


def new_trial(number: int, params: dict[str, Any]) -> Any:
    trial = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"augment.threshold": params["augment.threshold"]},
        distributions={"augment.threshold": optuna.distributions.FloatDistribution(0.1, 0.9)},
        user_attrs={"params": params, "attempt": 1, "launch": 0},
    )
    trial.number, trial.datetime_start = number, datetime.datetime.now()
    return trial


def agree(study: Study, writer: Writer, left: int) -> bool:
    """The comparison at the end of a launch; whether something may be missing."""
    if left or not writer.doubted:
        return bool(left)
    try:
        writer.repair(lambda apply: repair(study, apply, reason="done"), 60)
    except TrackingError:
        return True
    return writer.in_doubt


def drive(root: str, uri: str, queue: str, trials: str, epochs: str, pause: str) -> None:
    server.REQUEST_TIMEOUT_S = 2
    there = (Path(root) / NAME / "study.json").exists()
    study = Study.open(Path(root), NAME) if there else make_study(Path(root), uri)
    with study.lock():
        if there:
            study.add_launch("2026-01-01T00:00:00+00:00")
        writer = Writer(uri, lambda apply: repair(study, apply, running=True), int(queue))
        tracking = tracking_of(study, AfterRecord(study.record, writer))
        tracking.on_study_start()
        if there:
            writer.doubt()
        print("begun", flush=True)
        driver = Driver(study, tracking, int(trials), int(epochs), float(pause))
        signal.signal(signal.SIGTERM, lambda *_: setattr(driver, "stopping", True))
        driver.run()
        done = not driver.stopping
        tracking.on_study_end("FINISHED" if done else "KILLED", {})
        study.record.flush()
        if done:
            save_checkpoint(study, int(trials) - 1)
        left = writer.drain(10 if done else 3)
        missing = agree(study, writer, left) if done else bool(left)
        writer.close()
        study.end_launch("2026-01-01T00:00:00+00:00", "done" if done else "stopped")
        study.record.close()
    print(json.dumps({"done": done, "left": missing, "put_ms": 1000 * tracking.max_seconds}), flush=True)


def fork(arguments: list[str], out: str) -> int:
    """A driver of its own; gives its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        drive(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    server.configure_mlflow()
    import mlflow  # noqa: F401  (seconds, once)

    for line in sys.stdin:
        asked = json.loads(line)
        print(ended(asked["wait"]) if "wait" in asked else fork(**asked), flush=True)


if __name__ == "__main__":
    main()
