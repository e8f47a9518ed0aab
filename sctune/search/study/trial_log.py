"""Log files of a study's trials, written by the driver from what travels with the reports."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TypeAlias

from sctune.metrics.objective import AUROC, Objective
from sctune.report import EpochReport

LOGS = "logs"
MAX_BYTES = 1 << 20
"""Size above which a trial's file takes no more epochs; its end is still written."""
MAX_TRACEBACK = 20_000
LOST = "lost"

GATHER_S = 0.25
"""How long a line waits for others, so that a file is opened once for all of them."""

_FAILED = "end: FAIL"
_MOMENT = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")

_Block: TypeAlias = tuple[list[str], bool]
"""Lines of one event, and whether it is a trial's end."""

_log = logging.getLogger(__name__)


def trial_log_path(study: Path, number: int) -> Path:
    """The log file of a trial, in the folder of its study."""
    return study / LOGS / f"trial-{number:05d}.log"


def logged_failure(study: Path, number: int) -> str | None:
    """Kind, message and traceback of a trial that failed, as its log ends; None where no log says so."""
    try:
        text = trial_log_path(study, number).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    _, found, failure = text.rpartition(f" {_FAILED}")
    lines = failure.splitlines()[1:]
    return "\n".join(_MOMENT.sub("", line) for line in lines) if found else None


class TrialLog:
    """An observer of the trials that appends to `logs/trial-<number>.log`; a thread of its own writes.

    launch: number of this launch, from 1; objective: what its reports are judged by. A resumed trial goes on in its
    file.
    """

    def __init__(self, study: Path, launch: int, objective: Objective = AUROC) -> None:
        self.study = study
        self.launch = launch
        self._metric = objective.metric
        self._where: dict[int, str] = {}
        self._full: set[int] = set()
        self._live: set[int] = set()
        self._queue: SimpleQueue[tuple[int, list[str], bool] | None] = SimpleQueue()
        self._closing = Event()
        self._ended = False
        self._thread = Thread(target=self._write, daemon=True, name="sctune-trial-log")
        self._thread.start()

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def on_start(self, number: int, params: dict[str, Any], attempt: int) -> None:
        self._where.pop(number, None)
        self._live.add(number)
        shown = ", ".join(f"{name}={value}" for name, value in params.items())
        self._put(number, [f"start: launch {self.launch}, attempt {attempt}: {shown}"])
        _log.info("trial %d starts (attempt %d): %s", number, attempt, shown)

    def on_report(self, number: int, report: EpochReport, time: int) -> None:
        lines = self._moved(number, report.origin.where)
        lines += [f"  {line}" for line in report.origin.log]
        parts = [f"epoch {report.epoch}/{report.epochs}", f"{self._metric} {report.value:.4f}"]
        parts += [f"{name} {report.metrics[name]:.4g}" for name in ("loss", "seconds") if name in report.metrics]
        self._put(number, [*lines, "  ".join(parts)])

    def on_wait(self, number: int, reason: str) -> None:
        self._put(number, [f"waits to be started again: {reason}"])
        _log.info("trial %d waits to be started again: %s", number, reason)
        self._live.discard(number)

    def on_end(self, number: int, state: str, value: float | None, info: dict[str, Any]) -> None:
        failure = info.get("failure") or {}
        lines = self._moved(number, failure.get("where"))
        lines += [f"  {line}" for line in failure.get("log", "").splitlines()]
        if failure.get("kind") == LOST and number in self._where:
            lines.append(f"worker lost: it ran on {self._where[number]}")
        shown = "" if value is None else f", {self._metric} {value:.4f}"
        reason = info.get("stop_reason") or state.lower()
        lines.append(f"end: {state}{shown} ({reason})")
        if failure:
            lines.append(f"{failure['kind']}: {failure['message']}")
            # the end of a long traceback says what happened
            lines += failure["traceback"][-MAX_TRACEBACK:].splitlines()
            _log.info("trial %d: %s: %s", number, failure["kind"], failure["message"])
        _log.info("trial %d: %s%s (%s)", number, state, shown, reason)
        self._put(number, lines, end=True)
        self._live.discard(number)

    def close(self) -> None:
        """Say so of the unfinished trials, and write what is queued; a disk that hangs is left alone after 5 s."""
        for number in sorted(self._live):
            self._put(number, ["unfinished when the launch ended; `sctune resume` goes on with it"], end=True)
        self._queue.put(None)
        self._closing.set()
        self._thread.join(5)

    def _moved(self, number: int, where: str | None) -> list[str]:
        """A line where the trial runs in another process than before: its first one, or its worker was lost."""
        if not where:
            return []
        # host and process; the device is not known before a trial's first epoch
        before, now = self._where.get(number), ", ".join(where.split(", ")[:2])
        if before == now:
            return []
        self._where[number] = now
        if before is None:
            return [f"runs on {where}"]
        _log.warning("trial %d: its worker was lost (%s); it goes on at %s", number, before, where)
        return [f"worker lost: it ran on {before}; goes on at {where} from the last checkpoint"]

    def _put(self, number: int, lines: Iterable[str], end: bool = False) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._queue.put((number, [f"{now} {line}" for line in lines], end))

    def _write(self) -> None:
        warned = False
        while not self._ended:
            for number, blocks in self._gathered().items():
                try:
                    self._append(number, blocks)
                except OSError as problem:  # a full disk must not end a search
                    if not warned:
                        _log.warning("cannot write the log of trial %d: %s", number, problem.strerror)
                    warned = True

    def _gathered(self) -> dict[int, list[_Block]]:
        """What there is to write, once there is something and others had a moment to join; by trial."""
        blocks: dict[int, list[_Block]] = {}
        item = self._queue.get()
        self._closing.wait(GATHER_S)
        while item is not None:
            number, lines, end = item
            blocks.setdefault(number, []).append((lines, end))
            if self._queue.empty():
                return blocks
            item = self._queue.get()
        self._ended = True
        return blocks

    def _append(self, number: int, blocks: list[_Block]) -> None:
        if number in self._full and not any(end for _, end in blocks):
            return
        path = trial_log_path(self.study, number)
        path.parent.mkdir(exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as stream:
            for lines, end in blocks:
                if number not in self._full and not end and stream.tell() > MAX_BYTES:
                    self._full.add(number)
                    stream.write(f"{lines[0].partition(' ')[0]} the file is full; only the end follows\n")
                elif end or number not in self._full:
                    stream.write("\n".join(lines) + "\n")
