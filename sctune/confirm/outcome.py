"""What the test images say: means over seeds with intervals, the paired difference, optimism, the model to deploy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sctune.confirm.results import ChosenModel, Confirmation, Ranked, Rival, Tested
from sctune.confirm.scoring import TaskScores, subset_of
from sctune.metrics.objective import AUROC, find_objective
from sctune.metrics.statistics import Estimate, Scores, seeded_difference, seeded_interval, spread
from sctune.metrics.threshold import conformal_threshold, escape_rate, false_alarm_rate


class ScoredRival(NamedTuple):
    """A configuration with its test scores; values: task key -> its selection objective."""

    name: str
    scored: Sequence[TaskScores]
    values: Mapping[str, float]


def tested(
    found: Confirmation,
    first: Sequence[TaskScores],
    rivals: Sequence[ScoredRival],
    labels: Sequence[int],
    values: Mapping[str, float],
) -> Tested:
    """Sum up the test scores of the winner (first) and of what it is compared with, above all the first of these.

    labels: of the distinct test images; values: task key -> the winner's selection objective.
    """
    runs = [one.scores for one in first]
    against = _rival(found, runs, rivals[0]) if rivals else None
    result = seeded_interval(runs)
    stds = spread(_table(runs))
    # what the search promised, of the trial that was tested: where the reference won, of the best candidate
    names = (found.winner.name, None if against is None else against.name)
    promised = (one for one in found.ranking if one.trial is not None and one.search_value is not None)
    searched = next((one for one in promised if one.name in names), None)
    # pseudo anomalies promise nothing about real ones, and another objective nothing about the test's AUROC
    silent = found.mode == "proxy" or found.objective != AUROC.name
    means = {found.winner.name: result} | ({} if against is None else {against.name: against.estimate})
    return Tested(
        opened=datetime.now(UTC).isoformat(timespec="seconds"),
        images=(list(labels).count(0), list(labels).count(1)),
        winner=result,
        reference=None if against is None else against.estimate,
        difference=None if against is None else against.difference,
        against=None if against is None else against.name,
        subset_std=stds.subsets,
        pooled_std=stds.pooled,
        optimism_search=None if searched is None or silent else _optimism(searched, means[searched.name]),
        optimism_confirm=None if silent else found.winner.mean - result.value,
        models=tuple(_models(found, first, values)),
        rivals=(*([against] if against is not None else []), *(_rival(found, runs, one) for one in rivals[1:])),
    )


def _rival(found: Confirmation, winner: Sequence[Scores], one: ScoredRival) -> Rival:
    runs = [scored.scores for scored in one.scored]
    return Rival(
        name=one.name,
        estimate=seeded_interval(runs),
        difference=seeded_difference(winner, runs),
        models=tuple(_models(found, one.scored, one.values)),
    )


def _table(runs: Sequence[Scores]) -> list[list[float]]:
    """AUROC of each model: a row for each subset."""
    subsets: dict[str, list[float]] = {}
    for run in runs:
        subsets.setdefault(run.subset, []).append(AUROC.value(run.labels, run.scores))
    return list(subsets.values())


def _models(found: Confirmation, scored: Sequence[TaskScores], values: Mapping[str, float]) -> list[ChosenModel]:
    """For each category and class the seed that selected best (mean over its folds); the test has no say in it."""
    models, merit = [], find_objective(found.objective).merit
    for subset in dict.fromkeys(subset_of(one.task) for one in scored):
        seeds: dict[int, list[TaskScores]] = {}
        for one in scored:
            if subset_of(one.task) == subset:
                seeds.setdefault(one.task.seed, []).append(one)
        means = {seed: sum(values[one.task.key] for one in folds) / len(folds) for seed, folds in seeds.items()}
        best = max(means, key=lambda seed: merit(means[seed]))
        # each fold selects by anomalies of its own, so that their values cannot be compared
        models.append(_chosen(seeds[best][0], subset, means[best], found.false_alarm_rate, found.confirm_study))
    return models


def _optimism(searched: Ranked, tested: Estimate) -> float | None:
    return None if searched.search_value is None else searched.search_value - tested.value


def _chosen(one: TaskScores, subset: str, selection: float, wanted: float, folder: str) -> ChosenModel:
    labels, scores = one.scores.labels, one.scores.scores
    threshold = conformal_threshold(one.calibration, wanted) if one.calibration else None
    return ChosenModel(
        task=one.task.key,
        subset=subset,
        seed=one.task.seed,
        selection=selection,
        test_auroc=AUROC.value(labels, scores),
        threshold=None if threshold is None else threshold.to_dict(),
        escapes=None if threshold is None else escape_rate(labels, scores, threshold.value),
        false_alarms=None if threshold is None else false_alarm_rate(labels, scores, threshold.value),
        scores=f"{folder}/{one.file}",
    )
