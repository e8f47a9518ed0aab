"""A study as the record has it, in the words of the tracking: its trials, and the facts that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from sctune.errors import ConfigError
from sctune.metrics.objective import AUROC, Objective
from sctune.search.space.definition import Space
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.record import reports_of
from sctune.search.study.references import Reference, read_references, reference_fields
from sctune.search.study.study import Study
from sctune.search.study.trial_log import logged_failure
from sctune.tracking.callback import EventSink, PastReference, PastTrial, StudyFacts, TrackingCallback


def past_trial(trial: FrozenTrial, objective: Objective = AUROC, folder: Path | None = None) -> PastTrial:
    """A stored trial as the tracking tells it.

    objective: of its study, where it is compared with others; folder: of its study, whose logs know the traceback of a
    failure.
    """
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
        failure=_failure(trial, folder),
    )


def past_reference(one: Reference, objective: Objective = AUROC) -> PastReference:
    """A reference as the tracking tells it, once it is run on all tasks or has failed."""
    reports = {} if one.report is None else {one.report.epoch: {"metrics": one.report.metrics, "time": one.told}}
    failure = None if one.report is not None or one.failure is None else one.failure
    return PastReference(
        number=one.name,
        params={},
        attempt=1,
        started=one.begun,
        reports=reports,
        state=one.state,
        ended=one.told,
        value=one.value,
        stop_reason="all tasks done" if failure is None else "an error",
        objective=objective,
        failure=None if failure is None else f"{failure['kind']}: {failure['message']}",
    )


def shown_references(study: Study, stored: Mapping[str, Any]) -> list[PastReference]:
    """The references that have a run in MLflow; stored: what the record holds of them."""
    found = read_references(study.manifest, stored)
    return [past_reference(one, study.objective) for one in found if one.state is not None]


def tracking_of(study: Study, sink: EventSink) -> TrackingCallback:
    """The callback of a study, without a launch."""
    return TrackingCallback(sink, study_facts(study), shown_fields(study.manifest.build_space()))


def shown_fields(space: Space) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """A trial's parameters -> the fields of its run, over the base: of another method than the base's, all it has."""
    base = space.base.method.name

    def fields(params: Mapping[str, Any]) -> Mapping[str, Any]:
        chosen = space.assignments(params)
        if chosen.get("method.name", base) != base:
            # a method whose package is gone cannot tell its other fields
            with suppress(ConfigError):
                return space.config(params).flat()
        return chosen

    return fields


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
            **_whose(manifest),
        },
        resumed=bool(manifest.launches),
        objective=study.objective,
        references={name: _reference_params(study, name) for name in manifest.references},
        owner=manifest.owner,
    )


def _whose(manifest: StudyManifest) -> dict[str, str]:
    found = {"owner": manifest.owner, "notes": manifest.notes}
    # one that was emptied is shown so
    return {name: text for name, text in found.items() if text is not None}


def _reference_params(study: Study, name: str) -> dict[str, Any]:
    """Its whole configuration; empty where the package that it came from is gone."""
    base = study.manifest.trial_config()
    with suppress(ConfigError):
        return base.override(reference_fields(base, name, study.manifest.profile)).flat()
    return {}


def _failure(trial: FrozenTrial, folder: Path | None) -> str | None:
    failure = trial.user_attrs.get("failure")
    if failure is None:
        return None
    logged = None if folder is None else logged_failure(folder, trial.number)
    return logged or f"{failure['kind']}: {failure['message']}"


def _ms(moment: datetime | None) -> int:
    return int(moment.timestamp() * 1000) if moment is not None else 0
