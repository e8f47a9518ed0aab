"""The order of the candidates on the selection objective over fresh seeds, from the confirmation's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing

from optuna.trial import FrozenTrial

from sctune.config import Task
from sctune.confirm.candidates import Candidate
from sctune.confirm.results import Ranked
from sctune.errors import AllTrialsFailedError
from sctune.metrics.statistics import spread
from sctune.search.study.leaderboard import TrialRow, leaderboard
from sctune.search.study.record import Record, reports_of
from sctune.search.study.study import Study


def rank(trained: Study, candidates: Sequence[Candidate]) -> tuple[dict[str, TrialRow], list[Ranked], list[str]]:
    """Row of each configuration's trial, the ranking on the selection objective, best first, and notes about the rest.

    Raises AllTrialsFailedError where no candidate of the search is left: a look is not spent on the reference alone.
    """
    with closing(Record(trained.record_url, trained.name)) as record:
        trials = record.load()
    rows = _by_name(trained, trials)
    metrics = {trial.number: list(reports_of(trial).values()) for trial in trials}
    ranking, failed = [], []
    for one in candidates:
        row = rows.get(one.name)
        if row is None or row.state != "COMPLETE":
            why = row.failure["message"] if row is not None and row.failure else "it was not trained"
            failed.append(f"{one.name} could not be trained again and is not ranked: {why}")
            continue
        seeds = _by_seed(trained.manifest.tasks, task_values(trained, metrics[row.number][-1]["metrics"]))
        values = list(seeds.values())
        std = spread([values]).trials
        ranking.append(
            Ranked(
                name=one.name,
                trial=one.trial,
                fields=one.fields,
                mean=sum(values) / len(values),
                std=std,
                seeds=seeds,
                search_value=one.value,
            )
        )
    if all(one.trial is None for one in ranking):
        raise AllTrialsFailedError(
            f"none of the search's trials could be trained again; see `sctune logs {trained.name}`"
        )
    # the earlier candidate of equals: the search had it before the other
    return rows, sorted(ranking, key=lambda one: -trained.objective.merit(one.mean)), failed


def trained_rows(trained: Study) -> dict[str, TrialRow]:
    """Name of each configuration of a confirmation's study -> its trial."""
    with closing(Record(trained.record_url, trained.name)) as record:
        return _by_name(trained, record.load())


def _by_name(trained: Study, trials: Sequence[FrozenTrial]) -> dict[str, TrialRow]:
    return {str(row.params["variant"]): row for row in leaderboard(trials, trained.objective)}


def task_values(study: Study, metrics: Mapping[str, float]) -> dict[str, float]:
    """Task key -> objective, from a trial's last report."""
    tasks, metric = study.manifest.tasks, study.objective.metric
    if len(tasks) == 1:
        return {tasks[0].key: metrics[metric]}
    return {task.key: metrics[f"{metric}/{task.key}"] for task in tasks}


def _by_seed(tasks: Sequence[Task], values: Mapping[str, float]) -> dict[int, float]:
    seeds = dict.fromkeys(task.seed for task in tasks)
    parts = {seed: [values[task.key] for task in tasks if task.seed == seed] for seed in seeds}
    return {seed: sum(found) / len(found) for seed, found in parts.items()}


def final_values(trained: Study, row: TrialRow) -> dict[str, float]:
    """Task key -> objective of a configuration's last epoch."""
    with closing(Record(trained.record_url, trained.name)) as record:
        reports = {trial.number: reports_of(trial) for trial in record.load()}
    return task_values(trained, list(reports[row.number].values())[-1]["metrics"])
