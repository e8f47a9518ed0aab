"""Bringing the tracking up to the record: what a killed launch, or a journal that lost events, still owes MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from optuna.trial import FrozenTrial

from sctune.metrics.objective import AUROC, Objective
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.record import reports_of
from sctune.search.study.study import Study
from sctune.tracking.callback import EventSink, PastTrial, StudyFacts, TrackingCallback
from sctune.tracking.writer import Writer

_ROOM_S = 10.0


def replay(trials: Sequence[FrozenTrial], tracking: TrackingCallback, writer: Writer) -> bool:
    """Tell the tracking again what the record holds of these trials; False where the writer had no room for it all.

    Points carry their first time, so what has arrived already changes nothing.
    """
    lost = writer.lost
    for trial in trials:
        if not writer.wait_for_room(_ROOM_S):
            return False
        tracking.replay(past_trial(trial))
    return writer.lost == lost


def replay_owed(study: Study, trials: Sequence[FrozenTrial], writer: Writer) -> None:
    """At the start of a launch: all trials where the journal lost events, else those of launches that never ended."""
    # straight to the writer, and not after the record, which holds all of it
    tracking = tracking_of(study, writer)
    if writer.owed:
        if replay(trials, tracking, writer):
            writer.replayed()
        return
    killed = _killed(study.manifest)
    replay([trial for trial in trials if trial.user_attrs.get("launch") in killed], tracking, writer)


def past_trial(trial: FrozenTrial, objective: Objective = AUROC) -> PastTrial:
    """A stored trial as the tracking tells it; objective: of its study, where it is compared with others."""
    attrs, ended = trial.user_attrs, trial.state.is_finished()
    return PastTrial(
        number=trial.number,
        params=attrs.get("params", trial.params),
        attempt=int(attrs.get("attempt", 1)),
        started=_ms(trial.datetime_start),
        reports=reports_of(trial),
        state=trial.state.name if ended else None,
        ended=_ms(trial.datetime_complete) if ended else None,
        value=trial.value if ended and trial.state.name != "FAIL" else None,
        stop_reason=attrs.get("stop_reason"),
        objective=objective,
    )


def tracking_of(study: Study, sink: EventSink) -> TrackingCallback:
    """The callback of a study, without a launch."""
    return TrackingCallback(sink, study_facts(study), study.manifest.build_space().assignments)


def study_facts(study: Study) -> StudyFacts:
    """What the study's runs show besides their trials."""
    manifest = study.manifest
    return StudyFacts(
        study_id=manifest.study_id,
        name=manifest.name,
        base=manifest.trial_config().flat(),
        data_digest=manifest.data.digest,
        git_commit=manifest.git_commit,
        versions=manifest.versions,
        seed=manifest.tasks[0].seed,
        tasks=[task.key for task in manifest.tasks],
        tags={
            "profile": manifest.profile,
            "space": str(manifest.space.get("name")),
            "sampler": manifest.sampler,
            "scheduler": manifest.scheduler.name,
            "selection": manifest.selection.mode,
            "selection_reason": manifest.selection.reason,
            "data": manifest.data.name,
        },
        resumed=bool(manifest.launches),
        objective=study.objective,
    )


def _killed(manifest: StudyManifest) -> set[int]:
    """Launches that did not end properly, since the last one that did: that one made up for those before it."""
    killed: set[int] = set()
    for index, launch in enumerate(manifest.launches):
        killed = killed | {index} if launch.reason in (None, "failed") else set()
    return killed


def _ms(moment: datetime | None) -> int:
    return int(moment.timestamp() * 1000) if moment is not None else 0
