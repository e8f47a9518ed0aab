"""The thin Ray scheduler that asks a stopping rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sctune.metrics.objective import AUROC, Objective
from sctune.report import EPOCH
from sctune.search.rules.stopping import Rule

FORCE_S = 3
"""Seconds that Tune waits for an actor to end before it kills it; checkpoints are whole or absent at any moment."""


class RuleScheduler(FIFOScheduler):
    """Ray's view of a rule; without one it is plain first in, first out. Only reports of an epoch are judged."""

    def __init__(
        self,
        rule: Rule | None,
        on_error: Callable[[str, str], None] = lambda _trial, _text: None,
        objective: Objective = AUROC,
    ) -> None:
        """on_error: told (Ray's trial id, message) when a worker ended, before the searcher is.

        objective: of the reports; the rule is told their merit.
        """
        super().__init__()
        self.rule = rule
        self._objective = objective
        self._on_error = on_error

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        # Tune gives actors ten seconds to end, those that are still importing too; a stopped driver has no more in all
        controller = getattr(tune_controller, "_tune_controller", None)
        if controller is not None and hasattr(controller, "_actor_force_cleanup_timeout"):
            controller._actor_force_cleanup_timeout = FORCE_S
        super().on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        path = trial.error_file
        self._on_error(trial.trial_id, Path(path).read_text(encoding="utf-8", errors="replace") if path else "")
        super().on_trial_error(tune_controller, trial)

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles the scheduler into its own snapshot, which is never read back
        return {key: value for key, value in self.__dict__.items() if key != "_on_error"}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        failed = any(key.split("/")[0] == "failure" for key in result)
        if self.rule is None or failed or EPOCH not in result:
            return str(TrialScheduler.CONTINUE)
        merit = self._objective.merit(result[self._objective.metric])
        stop = self.rule.decide(trial.config["number"], result[EPOCH], merit)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def debug_string(self) -> str:
        return f"Using {type(self.rule).__name__ if self.rule else 'no early stopping'}"
