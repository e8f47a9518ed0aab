"""The thin Ray scheduler that asks the controller, and through it the study's rule; and who hears of workers."""

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
from sctune.trial.ray_private import (
    forget_ended_trials,
    kill_actors_after,
    release_idle_actors,
    wait_for_trials_at_most,
)

FORCE_S = 3
"""Seconds that Tune waits for an actor to end before it kills it; checkpoints are whole or absent at any moment."""

ROUND_S = 0.2
"""Seconds until Tune asks again for a trial where none runs."""

Judge = Callable[[int, EpochReport], Decision]


class RuleScheduler(FIFOScheduler):
    """First in, first out, but for what the rule says. Only reports of an epoch are judged.

    To Ray a paused trial is a stopped one: its worker is free for another, and the controller suggests the trial again
    when it is promoted. Ray's own pause would keep the trial to this process, and a kill would lose it.
    """

    def __init__(
        self,
        judge: Judge,
        on_error: Callable[[str, str], None] = lambda _trial, _text: None,
        held: Callable[[], bool] = lambda: False,
    ) -> None:
        """judge: (number, report) -> what becomes of the trial. on_error: told (Ray's trial id, message) when a worker
        ended, before the searcher is. held: whether no trial may be started now, so that idle workers are to end.
        """
        super().__init__()
        self._judge = judge
        self._on_error = on_error
        self._held = held

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        # Tune gives actors ten seconds to end, those that are still importing too; a stopped driver has no more in all
        kill_actors_after(tune_controller, FORCE_S)
        forget_ended_trials(tune_controller)
        wait_for_trials_at_most(tune_controller, ROUND_S)
        super().on_trial_add(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        chosen = super().choose_trial_to_run(tune_controller)
        if chosen is None and self._held():
            release_idle_actors(tune_controller)
        return chosen

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        path = trial.error_file
        self._on_error(trial.trial_id, Path(path).read_text(encoding="utf-8", errors="replace") if path else "")
        super().on_trial_error(tune_controller, trial)

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles the scheduler into its own snapshot, which is never read back
        return {key: value for key, value in self.__dict__.items() if key not in ("_judge", "_on_error", "_held")}

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


class Workers(Callback):
    """Hears from Ray that a trial got its worker; until then it waits in Ray's queue."""

    def __init__(self, began: Callable[[int], None]) -> None:
        """began: told the trial's number."""
        self._began = began

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._began(trial.config["number"])

    def __getstate__(self) -> dict[str, Any]:
        # as the scheduler
        return {}
