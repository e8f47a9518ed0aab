"""Ray's searcher: hands the controller's trials to Ray Tune, and what Ray tells of them to the controller.

Ray's own Optuna searcher tells early-stopped trials COMPLETE and leaves others RUNNING; with the controller the record
tells the truth. Ray itself retries and pauses nothing: a trial that is started again, or promoted, is suggested again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.search import Searcher

from sctune.report import FAILURE, REPORT, VALUE, EpochReport, TrialFailure
from sctune.search.run.controller import TrialController


class StudySearcher(Searcher):
    """Suggests {"number", "params", "attempt", "launch", "first_launch", "resources", "avoid"} (see Assignment).

    resources: {"cpus", "gpus"} that the trial takes.
    """

    def __init__(self, controller: TrialController) -> None:
        super().__init__(metric=VALUE, mode="max")
        self.controller = controller
        self._numbers: dict[str, int] = {}
        self._errors: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, None for "not now", or Searcher.FINISHED when nothing is left to start or to wait for."""
        next_one = self.controller.next()
        if next_one is None:
            return None if self.controller.end is None else str(Searcher.FINISHED)
        self._numbers[trial_id] = next_one.number
        return {
            "number": next_one.number,
            "params": dict(next_one.params),
            "attempt": next_one.attempt,
            "launch": next_one.launch,
            "first_launch": next_one.first_launch,
            "resources": {"cpus": next_one.resources.cpus, "gpus": next_one.resources.gpus},
            "avoid": list(next_one.avoid),
        }

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """An epoch of a trial that goes on. Ray does not pass the last one here, but to `on_trial_complete`."""
        number, report = self._numbers.get(trial_id), read_report(result)
        if number is not None and report is not None:
            self.controller.reported(number, report)

    def on_error(self, trial_id: str, text: str) -> None:
        """Ray's message about a trial's worker, told before `on_trial_complete`."""
        self._errors[trial_id] = text

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """The end of a trial, by itself, by the scheduler, by an error, or because the launch is being stopped."""
        number, text = self._numbers.pop(trial_id, None), self._errors.pop(trial_id, "")
        if number is None:
            return
        failure, report = read_failure(result or {}), read_report(result or {})
        if failure is not None:
            self.controller.failed(number, failure)
        elif error:
            self.controller.lost(number, text, report)
        else:
            self.controller.ended(number, report)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Ray asks whether its settings are taken; metric and mode are the study's own."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a new launch opens the record."""

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles the searcher into its own snapshot, which is never read back
        return {key: value for key, value in self.__dict__.items() if key != "controller"}


def read_report(result: Mapping[str, Any]) -> EpochReport | None:
    """The report in what a trial's step gave; None when it holds none."""
    report = result.get(REPORT)
    return report if isinstance(report, EpochReport) else None


def read_failure(result: Mapping[str, Any]) -> TrialFailure | None:
    """The failure of a trial that classified its own error; None when it did not."""
    failure = result.get(FAILURE)
    return failure if isinstance(failure, TrialFailure) else None
