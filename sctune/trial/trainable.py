"""The Ray side of a trial: one actor runs many trials, one epoch of every task per step.

Checkpoints are ours (trial/checkpoint.py), keyed by the Optuna number: a later attempt finds the latest one by
itself, and Ray's own checkpointing and retries stay unused.
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections import deque
from dataclasses import replace
from typing import Any

import ray
import torch
from ray import tune

from sctune.config import TrialConfig
from sctune.errors import NodeLeavingError, PlaceError, StoppedError, StorageError
from sctune.report import FAILURE, REPORT, VALUE, EpochReport, Origin, TrialFailure
from sctune.train.card import Card, own_card, tensor_limit
from sctune.train.memory import give_memory_back
from sctune.train.trainer import Trainer
from sctune.trial.building import TrainerBuilder, TrialSpec
from sctune.trial.checkpoint import TaskState, TrialStore
from sctune.trial.course import Course
from sctune.trial.leaving import LeavingFlag
from sctune.trial.step_log import StepLog
from sctune.trial.stop_flag import StopFlag
from sctune.trial.storage import answering, reason

LAST_SAVE_S = 600.0
"""How long a trial that has ended keeps its model in memory for a storage that does not take it."""

SAVE_PAUSE_S = 5.0
_MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")

_log = logging.getLogger(__name__)


class SaliencyCutTrainable(tune.Trainable):
    """Ray class Trainable; `spec` is a TrialSpec as a dict.

    Its configuration is {"number", "params", "attempt", "launch", "first_launch", "resources"}: the launch's number
    from 1, and that of the launch which began the trial, 0 where an earlier version did. With a fraction of a GPU its
    tensors get no more than that of the card's memory: a trial that needs more runs out of it itself, and not its
    neighbour.
    """

    course: Course | None

    def setup(self, config: dict[str, Any], spec: dict[str, Any]) -> None:
        self.spec = TrialSpec.model_validate(spec)
        self.log = StepLog.attach()
        self._begin(config)
        self._builder = TrainerBuilder(self.spec)
        self._should_stop = StopFlag(self.spec.stop_key)
        self._node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        self._is_leaving = LeavingFlag(self._node)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch of every task: {VALUE, REPORT, "done"}.

        A deterministic error ends the trial with a FAILURE in the report's place, never the actor. Both travel as they
        are: Ray takes dictionaries apart. Raises NodeLeavingError, with which the actor ends, where the node is being
        taken away: what was trained here is kept, and no trial may begin.
        """
        if self._is_leaving():
            self._keep_before_leaving()
            raise NodeLeavingError(f"the node is being drained ({self.log.where}): the trial goes on elsewhere")
        try:
            if self.course is None:
                self._limit_memory()
                self.course = self._restore()
            report = self.pending.popleft() if self.pending else self._train(self.course)
        except StoppedError:
            # the driver has stopped listening; the trial goes on from its checkpoint in the next launch
            self._drop()
            return {VALUE: float("nan"), "done": True}
        except StorageError as problem:
            return self._failure(problem.kind, problem)
        except OSError as problem:
            # no configuration makes a file or a disk: the driver tries another node
            return self._failure(PlaceError.__name__, problem)
        except Exception as problem:  # the trial's own fault: told with its traceback, and the actor lives on
            return self._failure("out of memory" if is_out_of_memory(problem) else type(problem).__name__, problem)
        return {VALUE: report.value, REPORT: replace(report, origin=self._origin()), "done": report.last}

    def cleanup(self) -> None:
        self._drop()

    def _begin(self, config: dict[str, Any]) -> None:
        # building waits for the first step, where its errors are told as the trial's failure
        self._drop()
        self.number = int(config["number"])
        self.attempt = int(config["attempt"])
        self.launch, self.first_launch = (int(config.get(key, 0)) for key in ("launch", "first_launch"))
        self.params = dict(config["params"])
        self.share = float(config.get("resources", {}).get("gpus", 0.0))
        self.saved_at = time.monotonic()
        self.sent: list[dict[str, Any]] = []
        self.kept = 0
        self.pending: deque[EpochReport] = deque()

    def _drop(self) -> None:
        self.course = None
        self._let_go()
        self.through: dict[str, TaskState] = {}

    def _let_go(self) -> None:
        self.trainers: list[Trainer] = []
        gc.collect()
        give_memory_back()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _limit_memory(self) -> None:
        # in every trial: the worker's last one may have had another share
        card = self._card() if self.share > 0 else None
        if card is not None:
            card.limit(tensor_limit(self.share, card.total, self.spec.gpu_context))

    def _card(self) -> Card | None:
        return own_card()

    def _train(self, course: Course) -> EpochReport:
        """An epoch of the replicate that is trained now; the last one frees its memory for the next."""
        if not self.trainers:
            self.trainers = self._build(course)
        report = course.report({trainer.task.key: trainer.run_epoch() for trainer in self.trainers})
        self._save(report)
        self.sent.append(report.to_dict())
        course.told(report)
        if course.ends(report.epoch):
            self.through |= {trainer.task.key: trainer.state() for trainer in self.trainers}
            self._let_go()
        return report

    def _build(self, course: Course) -> list[Trainer]:
        config = TrialConfig.load(self.spec.config).override(self.params)
        return self._builder.build(config, course.tasks, self._should_stop)

    def _restore(self) -> Course:
        """Where the trial stands by its latest checkpoint, with trainers as they were then."""
        course = Course(self.spec.tasks, self.spec.replicates, self.spec.epochs)
        self.store = TrialStore(self.spec.storage, self.number)
        if self.attempt == 1:
            # left over by a trial that took this number and whose driver was killed before it was recorded
            with answering(self.spec.storage):
                self.store.clear_before(self.launch)
        saved = self.store.load_latest(self.first_launch)
        if saved is None:
            return course
        # the driver may have died before these reached its record; told twice they change nothing
        told = [*saved.earlier, *([saved.report] if saved.report is not None else [])]
        self.pending = deque(map(EpochReport.from_dict, told))
        self.sent = [dict(row) for row in told]
        self.kept = told[-1]["epoch"] if told else 0
        for report in self.pending:
            course.told(report)
        now = {task.key for task in course.tasks}
        self.through = {key: state for key, state in saved.tasks.items() if key not in now}
        if not course.several or now & saved.tasks.keys():
            self.trainers = self._build(course)
            for trainer in self.trainers:
                trainer.load_state(*saved.tasks[trainer.task.key])
        return course

    def _save(self, report: EpochReport) -> None:
        """The checkpoint of an epoch where one is due. The last one is the model, so it is tried for a while.

        Raises StorageError where that is over: the driver starts the trial again, from the last checkpoint, when the
        storage is back.
        """
        end = time.monotonic() + LAST_SAVE_S
        while True:
            try:
                return self._checkpoint(report)
            except OSError as problem:
                _log.warning("no checkpoint of trial %d at epoch %d: %s", self.number, report.epoch, reason(problem))
                if not report.last:
                    return None
                if time.monotonic() >= end:
                    raise StorageError.of(problem) from None
            self._wait(SAVE_PAUSE_S)

    def _keep_before_leaving(self) -> None:
        """The checkpoint of the last epoch, which may not have been due; without it, it is trained again elsewhere."""
        if not self.trainers or not self.sent or self.sent[-1]["epoch"] == self.kept:
            return
        *earlier, report = self.sent
        try:
            self._keep(report, earlier)
        except (OSError, StorageError) as problem:
            _log.warning("no checkpoint of trial %d at epoch %d: %s", self.number, report["epoch"], reason(problem))

    def _wait(self, seconds: float) -> None:
        """Raises StoppedError as soon as the launch is being stopped."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._should_stop():
                raise StoppedError("stopped while it waited for the storage")
            time.sleep(0.2)

    def _checkpoint(self, report: EpochReport) -> None:
        waited = time.monotonic() - self.saved_at
        rung = report.epoch in self.spec.checkpoint_epochs or (
            self.course is not None and self.course.ends(report.epoch)
        )
        if report.last or rung or waited >= self.spec.checkpoint_interval:
            self._keep(report.to_dict(), self.sent, report.last)

    def _keep(self, report: dict[str, Any], earlier: list[dict[str, Any]], last: bool = False) -> None:
        """Store where the trial stands after an epoch and what was told of it and of those before."""
        states = {**self.through, **{trainer.task.key: trainer.state() for trainer in self.trainers}}
        self.store.save(report["epoch"], self.attempt, states, report, last, earlier, self.launch)
        self.kept = report["epoch"]
        self.saved_at = time.monotonic()

    def _failure(self, kind: str, problem: BaseException) -> dict[str, Any]:
        message = " ".join(str(problem).split())[:500]
        origin = self._origin()
        text = "".join(traceback.format_exception(problem))
        problem.__traceback__ = None
        if torch.cuda.is_initialized():
            # a GPU that is beyond repair raises here, and so takes this process with it
            torch.cuda.synchronize()
        self._drop()
        return {VALUE: float("nan"), FAILURE: TrialFailure(kind, message, text, origin), "done": True}

    def _origin(self) -> Origin:
        where = f"{self.log.where}, {self.trainers[0].device}" if self.trainers else self.log.where
        return Origin(where, self._node, tuple(self.log.take()), self.kept)


def is_out_of_memory(problem: BaseException) -> bool:
    """Of the GPU or of the machine; torch tells the latter and CUDA's libraries by their messages only."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(text in str(problem) for text in _MEMORY_MESSAGES)
