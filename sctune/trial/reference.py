"""The Ray side of a reference: one task of it in a worker, through the same trainer as a trial's."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Mapping
from typing import Any

from sctune.config import TrialConfig
from sctune.errors import StoppedError
from sctune.report import EpochReport
from sctune.train.memory import give_memory_back
from sctune.trial.building import TrainerBuilder, TrialSpec
from sctune.trial.step_log import StepLog
from sctune.trial.stop_flag import StopFlag

REPORTED, FAILED, STOPPED = "report", "failure", "stopped"
"""What `run_reference` gives: an EpochReport's dictionary, kind and message of an error, or that it was stopped."""


def run_reference(spec: Mapping[str, Any], fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Fit a reference on the task `key` and score its selection images; raises nothing.

    spec: a TrialSpec as a dict; fields: dotted values over its configuration. Under "log" stand the traceback of an
    error and what was logged.
    """
    shared = TrialSpec.model_validate(spec)
    log = StepLog.attach()
    try:
        report = _fitted(shared, fields, key)
    except StoppedError:
        return {STOPPED: True}
    except Exception as problem:  # whatever a method raises: the search goes on without it
        text = "".join(traceback.format_exception(problem))
        failure = {"kind": type(problem).__name__, "message": " ".join(str(problem).split())[:500]}
        return {FAILED: failure, "log": [*log.take(), *text.splitlines()]}
    finally:
        # the worker waits for a trial or another reference
        gc.collect()
        give_memory_back()
    return {REPORTED: report.to_dict(), "log": log.take()}


def _fitted(spec: TrialSpec, fields: Mapping[str, Any], key: str) -> EpochReport:
    config = TrialConfig.load(spec.config).override(fields)
    tasks = [task for task in spec.tasks if task.key == key]
    (trainer,) = TrainerBuilder(spec).build(config, tasks, StopFlag(spec.stop_key))
    return trainer.run_epoch()
