"""Bringing the tracking up to the record after a launch that was killed."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial

from sctune.report import EPOCH
from sctune.search.record import reports_of
from sctune.search.searcher import Observer
from sctune.search.study import StudyManifest


def replay_killed(manifest: StudyManifest, trials: Sequence[FrozenTrial], tracking: Observer) -> None:
    """Tell the tracking again what the record holds of launches that never ended.

    A killed driver may have written an event to the record and not to the tracking's journal. Points carry their
    first time, so what has arrived already changes nothing; a failure's traceback is in no record and stays as it is.
    """
    killed = {index for index, launch in enumerate(manifest.launches) if launch.ended is None}
    for trial in trials:
        attrs = trial.user_attrs
        if attrs.get("launch") not in killed:
            continue
        tracking.on_start(trial.number, attrs["params"], attrs["attempt"])
        for epoch, report in reports_of(trial).items():
            tracking.on_report(trial.number, {EPOCH: epoch, "metrics": report["metrics"]}, report["time"])
        if trial.state.is_finished():
            info = {"stop_reason": attrs.get("stop_reason"), "failure": None}
            tracking.on_end(trial.number, trial.state.name, trial.value, info)
