"""`sctune` with an accident: the command line runs as it is, and ends itself at a chosen point.

Environment: SCTUNE_CHAOS is JSON {"point", "count", "signal"}: at the count-th time that the point is reached the
driver gets the signal, and the file SCTUNE_CHAOS_SENT the time; point "none" only counts. The file SCTUNE_CHAOS_LOG
gets a line "epoch <trial> <epoch> <attempt>" for each epoch trained. The classes below travel to Ray's workers by
value, since this file is the main module.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

from sctune.search.cluster.connection import prepare_environment

prepare_environment()

from sctune.cli import main  # noqa: E402
from sctune.search.run import finish, launch  # noqa: E402
from sctune.search.run.controller import TrialController  # noqa: E402
from sctune.search.study.record_sql import RecordSql  # noqa: E402
from sctune.tracking.callback import TrackingCallback  # noqa: E402
from sctune.tracking.runs import Runs  # noqa: E402
from sctune.tracking.writer import Writer  # noqa: E402
from sctune.trial import trainable  # noqa: E402

PLAN = json.loads(os.environ.get("SCTUNE_CHAOS", '{"point": "none", "count": 1, "signal": 9}'))
SENT = os.environ.get("SCTUNE_CHAOS_SENT", "sent")

DRIVER_POINTS = {
    "asked, not recorded": (TrialController, "_start_new"),
    "record half-written": (RecordSql, "_put"),
    "reported, not told": (TrialController, "_end_trial"),
    "told, not queued": (TrackingCallback, "on_end"),
    "queued, not in MLflow": (Runs, "apply"),
    "final drain": (Writer, "drain"),
}
"""Point -> method of the driver at whose beginning the signal comes."""

WORKER_POINTS = ("before the first report", "mid-epoch", "checkpoint half-written")
POINTS = (*DRIVER_POINTS, *WORKER_POINTS)


def send(number: int, driver: int, sent: str) -> None:
    """The signal, and when it was sent; once, though both workers may reach the same count."""
    import os
    import time

    try:
        with open(sent, "x") as file:
            file.write(str(time.time()))
    except FileExistsError:
        return
    os.kill(driver, number)


def arm_driver() -> None:
    """Let the count-th call of the point's method begin with the signal."""
    owner, name = DRIVER_POINTS[PLAN["point"]]
    method, calls = getattr(owner, name), []

    def call(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == PLAN["count"]:
            send(PLAN["signal"], os.getpid(), SENT)
        return method(*arguments)

    setattr(owner, name, call)


def make_trial(plan: dict[str, Any], driver: int, log: str, sent: str) -> type[trainable.SaliencyCutTrainable]:
    """A trial that writes down its epochs, and that ends the driver from inside one."""

    class Watched(trainable.SaliencyCutTrainable):
        def step(self) -> dict[str, Any]:
            # counted over both workers: the file is shared
            with open(log, "a+") as file:
                file.seek(0)
                begun = sum(line.startswith("begin") for line in file)
                file.write(f"begin {self.number} {self.attempt}\n")
            due = begun + 1 == plan["count"]
            if due and plan["point"] == "before the first report":
                send(plan["signal"], driver, sent)
            if due and plan["point"] == "mid-epoch":
                threading.Timer(0.15, send, (plan["signal"], driver, sent)).start()
            result = super().step()
            if "report" in result and self.trained:
                with open(log, "a") as file:
                    file.write(f"epoch {self.number} {result['report'].epoch} {self.attempt}\n")
            return result

        def _checkpoint(self, report: Any) -> None:
            self.trained = True
            with open(log, "a+") as file:
                file.seek(0)
                saved = sum(line.startswith("save") for line in file)
                file.write("save\n")
            write = self.store._write

            def interrupted(path: str, content: bytes) -> None:
                write(path, content[: len(content) // 2])
                send(plan["signal"], driver, sent)
                time.sleep(0.3)
                write(path, content)

            if plan["point"] == "checkpoint half-written" and saved + 1 == plan["count"]:
                self.store._write = interrupted  # type: ignore[method-assign]
            super()._checkpoint(report)

        def _begin(self, config: dict[str, Any]) -> None:
            super()._begin(config)
            self.trained = False

    return Watched


def skip_pictures() -> None:
    """Pictures take longer than the small search; one point is about them."""
    finish._study_figures = lambda *_: []


if __name__ == "__main__":
    trainable.SaliencyCutTrainable = make_trial(PLAN, os.getpid(), os.environ["SCTUNE_CHAOS_LOG"], SENT)  # type: ignore[misc]
    if PLAN["point"] in DRIVER_POINTS:
        arm_driver()
    skip_pictures()
    assert launch.trials_in_ray is trainable
    main()
