"""What a Ray task gives back: its result, or its failure as data, so that the driver can tell it and go on."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from typing import Any

import ray

from sctune.errors import StoppedError
from sctune.train.memory import give_memory_back
from sctune.trial.step_log import StepLog

FAILED, STOPPED, LOG, NODE = "failure", "stopped", "log", "node"


def answered(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, with what was logged under LOG; raises nothing.

    FAILED: kind and message of an error, whose traceback is in the log, with the id of the node that met it under NODE;
    STOPPED: the launch is to end.
    """
    log = StepLog.attach()
    try:
        found = work()
    except StoppedError:
        return {STOPPED: True}
    except Exception as problem:  # whatever a method raises: what asked for it goes on without it
        text = "".join(traceback.format_exception(problem))
        failure = {"kind": type(problem).__name__, "message": " ".join(str(problem).split())[:500]}
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        return {FAILED: failure, NODE: node, LOG: [*log.take(), *text.splitlines()]}
    finally:
        # the worker waits for a trial or another task
        gc.collect()
        give_memory_back()
    return {**found, LOG: log.take()}
