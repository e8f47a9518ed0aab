"""The thin Ray scheduler that asks the controller, and through it the study's rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sctune.report import EpochReport
from sctune.search.rules.base import Decision
from sctune.search.run.searcher import read_report
from sctune.trial.ray_private import forget_ended_trials, kill_actors_after

FORCE_S = 3
"""Seconds that Tune waits for an actor to end before it kills it; checkpoints are whole or absent at any moment."""

Judge = Callable[[int, EpochReport], Decision]


class RuleScheduler(FIFOScheduler):
    """First in, first out, but for what the rule says. Only reports of an epoch are judged.

    To Ray a paused trial is a stopped one: its worker is free for another, and the controller suggests the trial again
    when it is promoted. Ray's own pause would keep the trial to this process, and a kill would lose it.
    """

    def __init__(self, judge: Judge, on_error: Callable[[str, str], None] = lambda _trial, _text: None) -> None:
        """judge: (number, report) -> what becomes of the trial. on_error: told (Ray's trial id, message) when a worker
        ended, before the searcher is.
        """
        super().__init__()
        self._judge = judge
        self._on_error = on_error

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        # Tune gives actors ten seconds to end, those that are still importing too; a stopped driver has no more in all
        kill_actors_after(tune_controller, FORCE_S)
        forget_ended_trials(tune_controller)
        super().on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        path = trial.error_file
        self._on_error(trial.trial_id, Path(path).read_text(encoding="utf-8", errors="replace") if path else "")
        super().on_trial_error(tune_controller, trial)

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles the scheduler into its own snapshot, which is never read back
        return {key: value for key, value in self.__dict__.items() if key not in ("_judge", "_on_error")}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        report = read_report(result)
        if report is None:
            return str(TrialScheduler.CONTINUE)
        decision = self._judge(trial.config["number"], report)
        return str(TrialScheduler.CONTINUE if decision is Decision.CONTINUE else TrialScheduler.STOP)

    def debug_string(self) -> str:
        return "Using the study's own rule"


class NoProgress(TrialProgressCallback):
    """In the place of the one that Tune adds by itself, which prints nothing here and keeps every trial."""

    on_trial_result = Callback.on_trial_result
    on_trial_error = Callback.on_trial_error
    on_trial_complete = Callback.on_trial_complete
