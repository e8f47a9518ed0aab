"""The Ray side of a reference: one task of it in a worker, through the same trainer as a trial's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sctune.config import TrialConfig
from sctune.trial.building import TrainerBuilder, TrialSpec
from sctune.trial.remote import answered
from sctune.trial.stop_flag import StopFlag

REPORTED = "report"
"""What `run_reference` gives beside what `remote.answered` does: an EpochReport's dictionary."""


def run_reference(spec: Mapping[str, Any], fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Fit a reference on the task `key` and score its selection images; raises nothing.

    spec: a TrialSpec as a dict; fields: dotted values over its configuration.
    """
    return answered(lambda: _fitted(TrialSpec.model_validate(spec), fields, key))


def _fitted(spec: TrialSpec, fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    config = TrialConfig.load(spec.config).override(fields)
    tasks = [task for task in spec.tasks if task.key == key]
    (trainer,) = TrainerBuilder(spec).build(config, tasks, StopFlag(spec.stop_key))
    return {REPORTED: trainer.run_epoch().to_dict()}
