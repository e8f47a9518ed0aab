"""Making the runs in MLflow say what the record says: compare, mend, compare again."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sctune.search.reconcile.check import Compared, compare
from sctune.search.reconcile.comparison import study_status
from sctune.search.reconcile.delivery import deliveries
from sctune.search.reconcile.differences import Difference
from sctune.search.reconcile.recorded import past_trial, shown_references, tracking_of
from sctune.search.reconcile.summary import stored_summary
from sctune.search.study.record import Record
from sctune.search.study.references import read_references
from sctune.search.study.study import Study
from sctune.tracking.callback import PastReference, PastTrial, TrackingCallback
from sctune.tracking.events import Child, Event
from sctune.tracking.writer import Apply, Writer

ROUNDS = 3
"""A repair may show a further difference: runs are nested anew once the study's run was made again."""

JOURNAL = "tracking.jsonl"
"""What earlier versions kept beside the record."""

_BATCH = 500
_NOT_EVENTS = ("checkpoint", "model", "alias")
_log = logging.getLogger(__name__)


class Repaired(NamedTuple):
    """The last comparison, and how many differences were mended before it."""

    compared: Compared
    mended: int


def open_writer(study: Study) -> Writer:
    """The way to MLflow for one launch, which repairs while it is idle; the caller holds the lock, and closes it."""
    remove_journal(study.folder)

    def when_idle(apply: Apply) -> None:
        # a driver that was cut off leaves the runs to the one that has the study now
        if not study.taken:
            repair(study, apply, running=True)

    return Writer(study.manifest.tracking_uri, when_idle)


def repair(study: Study, apply: Apply, *, running: bool = False, reason: str | None = None) -> Repaired:
    """Compare and mend until nothing is left that events can mend; for the thread that sends them.

    running, reason: see `compare`. Raises what reading the record or MLflow, or `apply`, raises.
    """
    # a reader of its own: the driver's has one thread only
    record = Record(study.record_url, study.name)
    mended = 0
    try:
        for turn in range(ROUNDS + 1):
            compared = compare(study, record, running=running, reason=reason)
            ours = [one for one in compared.differences if one.repair == "sync" and one.kind not in _NOT_EVENTS]
            if not ours or turn == ROUNDS:
                break
            _log.info("MLflow differs from the record in %d place(s), the first: %s", len(ours), ours[0].line)
            mend(study, compared, ours, apply)
            mended += len(ours)
    finally:
        record.close()
    return Repaired(compared, mended)


def mend(study: Study, compared: Compared, differences: Sequence[Difference], apply: Apply) -> None:
    """Apply whatever makes the runs say what the record says.

    MLflow lets no parameter or point be changed, so a run with a wrong one is made anew; its files move.
    """
    sink = _Batches(apply)
    tracking = tracking_of(study, sink)
    running = compared.state.running
    past = _past(study, compared)
    began = min((one.started for one in past.values()), default=int(time.time() * 1000))
    tracking.on_study_found(began, running)
    by_trial: dict[Child | None, list[Difference]] = {}
    for one in differences:
        by_trial.setdefault(one.trial, []).append(one)
    for number, group in by_trial.items():
        for run in {run for one in group if one.kind == "extra run" for run in one.wrong}:
            tracking.drop_run(number, run)
        if number is not None and any(one.kind != "files" for one in group):
            for run in {run for one in group if one.kind != "extra run" for run in one.wrong}:
                tracking.replace_run(number, past[number].started, run)
            tracking.replay(past[number])
    if any(one.kind == "files" for one in differences):
        for delivery in deliveries(study):
            tracking.on_artifact(delivery.trial, delivery.folder, delivery.inside)
    if not running:
        _close(study, compared, tracking)
    sink.flush()


def _past(study: Study, compared: Compared) -> dict[Child, PastTrial | PastReference]:
    trials = (past_trial(trial, study.objective, study.folder) for trial in compared.trials)
    found: dict[Child, PastTrial | PastReference] = {one.number: one for one in trials}
    return found | {one.number: one for one in shown_references(study, compared.stored)}


def remove_journal(folder: Path) -> None:
    """Remove what earlier versions wrote down for MLflow: the record holds all of it, and the comparison brings it."""
    found = [path for path in folder.glob(f"{JOURNAL}*") if path.is_file()]
    for path in found:
        path.unlink(missing_ok=True)
    if found:
        _log.info("removed %s of an earlier version: the record holds what was in it", JOURNAL)


def _close(study: Study, compared: Compared, tracking: TrackingCallback) -> None:
    """Children that were opened again are closed with their study."""
    told = stored_summary(study, compared.trials, read_references(study.manifest, compared.stored))
    tracking.on_study_end(study_status(compared.state)[0], **told)


class _Batches:
    """A sink that applies events, many at a time."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        self._events.append(event)
        if len(self._events) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        events, self._events = self._events, []
        if events:
            self._apply(events)
