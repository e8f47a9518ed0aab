"""The live display: what it counts, and that it asks for the noise only when somebody looks."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from rich.console import Console

from sctune.report import OBJECTIVE, EpochReport
from sctune.search.run.progress import SHOWN, SearchProgress


@pytest.fixture
def asked() -> list[float]:
    """First score of each trial whose noise was asked for."""
    return []


def make_progress(asked: list[float], terminal: bool) -> SearchProgress:
    def noise(scores: Mapping[str, Sequence[float]]) -> float:
        asked.append(scores["seed42"][0])
        return 0.01

    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    return SearchProgress(40, 2, 2, [], noise, console)


def run_trials(progress: SearchProgress, count: int) -> None:
    for number in range(count):
        params: dict[str, Any] = {"augment.kind": "[bold]"}
        progress.on_start(number, params, 1)
        scores = {"seed42": [float(number)]}
        progress.on_report(number, EpochReport(2, 2, {OBJECTIVE: 0.5 + number / 100}, scores), 0)
        progress.on_end(number, "COMPLETE", 0.5 + number / 100, {"stop_reason": "all epochs done"})


def output(progress: SearchProgress) -> str:
    assert isinstance(progress.console.file, io.StringIO)
    return progress.console.file.getvalue()


def test_without_a_terminal_there_is_a_line_per_trial_and_no_bootstrap(asked: list[float]) -> None:
    progress = make_progress(asked, terminal=False)
    with progress:
        run_trials(progress, 12)
    lines = output(progress).splitlines()
    assert len(lines) == 12
    assert lines[3] == "trial   3 COMPLETE 0.5300  kind=[bold]  (all epochs done)"
    assert asked == []


def test_the_display_shows_the_latest_and_the_best_with_its_noise_once(asked: list[float]) -> None:
    progress = make_progress(asked, terminal=True)
    run_trials(progress, 12)
    progress.on_start(12, {"augment.kind": "cutmix"}, 1)
    for _ in range(3):
        progress.console.print(progress.render())
    shown = output(progress).splitlines()
    rows = [line.split()[0] for line in shown if "COMPLETE" in line]
    assert rows == [str(number) for number in range(12 - SHOWN, 12)] * 3
    assert "12 complete, 0 pruned, 0 fail, 1 running; best 0.6100 +- 0.0100 (trial 11); about" in shown[-1]
    assert asked == [11.0]
