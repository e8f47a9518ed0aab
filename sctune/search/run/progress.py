"""The live display of a search: states, best value and its noise, elapsed and expected time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from sctune.metrics.objective import AUROC, Objective
from sctune.report import EpochReport
from sctune.search.study.references import Reference, best_reference, reference_line
from sctune.text import duration, short

SHOWN = 8
PRINT_S = 0.5


class SearchProgress:
    """An observer of the trials. On a terminal it redraws in place; elsewhere it prints a line per trial.

    The driver's thread only takes notes; a thread of the display's own draws and prints, twice a second.

    noise: standard error of the objective, given a trial's scores.
    """

    def __init__(
        self,
        trials: int,
        epochs: int,
        concurrent: int,
        earlier: Sequence[FrozenTrial],
        noise: Callable[[Mapping[str, Sequence[float]]], float],
        console: Console,
        objective: Objective = AUROC,
    ) -> None:
        self.console = console
        self.objective = objective
        self._noise = noise
        self._scores: dict[int, Mapping[str, Sequence[float]]] = {}
        self.epochs = epochs
        self.concurrent = concurrent
        states = [trial.state.name for trial in earlier]
        self.counts = {state: states.count(state) for state in ("COMPLETE", "PRUNED", "FAIL")}
        self.trials = trials
        self.running: dict[int, tuple[dict[str, Any], int, float | None]] = {}
        self.ended: deque[tuple[int, str, float | None, dict[str, Any]]] = deque(maxlen=SHOWN)
        self.best: tuple[int, float, Mapping[str, Sequence[float]]] | None = None
        self._noise_of: tuple[int, float] | None = None
        self.references: dict[str, Reference] = {}
        for trial in earlier:
            if trial.state.name == "COMPLETE" and trial.value is not None:
                self._consider(trial.number, trial.value, trial.user_attrs.get("scores", {}))
        self.started = time.monotonic()
        self._seconds, self._timed = 0.0, 0
        self._begun: dict[int, float] = {}
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console
        )
        self._task = self._bar.add_task("trials", total=trials, completed=sum(self.counts.values()))
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=2, transient=False)
        self._lines: deque[str] = deque()
        self._closed = threading.Event()
        self._printer = threading.Thread(target=self._print, name="sctune-progress", daemon=True)

    def __enter__(self) -> SearchProgress:
        if self.console.is_terminal:
            self._live.start()
        self._printer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._printer.join()
        self._print_lines()
        self._live.stop()

    def on_start(self, number: int, params: dict[str, Any], attempt: int) -> None:
        self.running[number] = (params, 0, None)
        self._begun[number] = time.monotonic()

    def on_report(self, number: int, report: EpochReport, time: int) -> None:
        params = self.running.get(number, ({}, 0, None))[0]
        self.running[number] = (params, report.epoch, report.value)
        self._scores[number] = report.scores

    def on_wait(self, number: int, reason: str) -> None:
        self.running.pop(number, None)
        self._begun.pop(number, None)
        self.say(f"trial {number}: {reason}")

    def say(self, line: str) -> None:
        """One line above the live display, or among the lines of the trials; printed within half a second."""
        self._lines.append(line)
        if self._closed.is_set():
            self._print_lines()

    def on_reference(self, one: Reference) -> None:
        """A reference was run on all tasks, or failed."""
        self.references[one.name] = one
        self.say(reference_line(one, None, self.objective))

    def on_end(self, number: int, state: str, value: float | None, info: dict[str, Any]) -> None:
        # a paused trial of an earlier launch may end without having run in this one
        params = self.running.pop(number, (info.get("params", {}), 0, None))[0]
        self._seconds += time.monotonic() - self._begun.pop(number, time.monotonic())
        self._timed += 1
        self.counts[state] = self.counts.get(state, 0) + 1
        self.ended.append((number, state, value, params))
        scores = self._scores.pop(number, {})
        if state == "COMPLETE" and value is not None:
            self._consider(number, value, scores)
        if not self.console.is_terminal:
            shown = "-" if value is None else f"{value:.4f}"
            line = f"trial {number:3d} {state:8s} {shown}  {short(params)}  ({info.get('stop_reason')})"
            self.say(line)

    def render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("trial", "state", "epoch", self.objective.label, "parameters"):
            table.add_column(column)
        self._bar.update(self._task, completed=sum(self.counts.values()))
        for number, state, value, params in list(self.ended):
            table.add_row(str(number), state, "", "-" if value is None else f"{value:.4f}", short(params))
        for number, (params, epoch, value) in sorted(self.running.copy().items()):
            latest = "" if value is None else f"{value:.4f}"
            table.add_row(str(number), "RUNNING", f"{epoch}/{self.epochs}", latest, short(params))
        return Group(table, self._bar, Text(self.summary()))

    def summary(self) -> str:
        counts = ", ".join(f"{count} {name.lower()}" for name, count in self.counts.items())
        best = "no full run yet"
        if self.best:
            number, value, scores = self.best
            # when it is looked at, and then in the display's own thread
            if self._noise_of is None or self._noise_of[0] != number:
                self._noise_of = (number, self._noise(scores))
            best = f"best {value:.4f} +- {self._noise_of[1]:.4f} (trial {number})"
        rival = best_reference(list(self.references.values()), self.objective)
        beside = "" if rival is None else f"; best reference {rival.value:.4f} ({rival.name})"
        return f"{counts}, {len(self.running)} running; {best}{beside}; {self.expected()}"

    def _print(self) -> None:
        while not self._closed.wait(PRINT_S):
            self._print_lines()

    def _print_lines(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if lines:
            self.console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)

    def _consider(self, number: int, value: float, scores: Mapping[str, Sequence[float]]) -> None:
        merit = self.objective.merit
        if scores and (self.best is None or merit(value) > merit(self.best[1])):
            self.best = (number, value, scores)

    def expected(self) -> str:
        """Time left, from the mean of the trials so far."""
        left = self.trials - sum(self.counts.values())
        if not self._timed:
            return "expected time after the first trial"
        seconds = left * self._seconds / self._timed / self.concurrent
        return f"about {duration(seconds)} left"
