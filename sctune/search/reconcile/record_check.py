"""Whether a record contradicts itself, and whether the checkpoints are those that it asks for. Plain data in,
differences out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sctune.metrics.merit import full_runs
from sctune.search.reconcile.differences import UNFINISHED, Difference, StudyState, count_of, some_of
from sctune.tracking.callback import PastTrial


@dataclass(frozen=True)
class StoredTrial:
    """A trial's folder of checkpoints. epochs: of its complete ones; leftovers: names of half-written ones."""

    number: int
    epochs: tuple[int, ...]
    leftovers: tuple[str, ...] = ()


def compare_record(
    trials: Sequence[PastTrial],
    objectives: Mapping[int, Mapping[int, float]],
    study: StudyState,
    foreign: Sequence[int] = (),
) -> list[Difference]:
    """Where the record contradicts itself; objectives: trial -> epoch -> its intermediate value.

    foreign: numbers of trials that another program put there.
    """
    found: list[Difference] = []
    numbers = sorted([*(trial.number for trial in trials), *foreign])
    if numbers != list(range(len(numbers))):
        gaps = sorted(set(range(max(numbers) + 1)) - set(numbers))
        twice = sorted({number for number in numbers if numbers.count(number) > 1})
        text = f"the record's numbers have gaps ({some_of(gaps)})" if gaps else f"the record has {some_of(twice)} twice"
        found.append(Difference(None, "record", text, repair=None))
    for trial in trials:
        found += _check_trial(trial, objectives.get(trial.number, {}))
        if trial.state is None and study.reason in ("done", UNFINISHED) and not study.running:
            text = "the record says RUNNING, though the study has ended and no driver runs it"
            found.append(Difference(trial.number, "record", text, repair="resume"))
    return found


def _check_trial(trial: PastTrial, objectives: Mapping[int, float]) -> list[Difference]:
    texts = []
    epochs = sorted(trial.reports)
    if epochs != list(range(1, len(epochs) + 1)):
        gaps = sorted(set(range(1, max(epochs))) - set(epochs))
        texts.append(f"the record's curve lacks {count_of(len(gaps), 'epoch')} ({some_of(gaps)})")
    told = {epoch: report["metrics"][trial.objective.metric] for epoch, report in trial.reports.items()}
    # a report is written before its value, so a killed driver may have left the last one without
    torn = (
        trial.state is None and {**told, **objectives} == told and told.keys() - objectives.keys() <= set(epochs[-1:])
    )
    if dict(objectives) != told and not torn:
        texts.append("the record's values are not those of its reports")
    if trial.value is not None and epochs and trial.value != told[epochs[-1]]:
        texts.append("the record's value is not that of its last epoch")
    return [Difference(trial.number, "record", text, repair=None) for text in texts]


def kept_trials(trials: Sequence[PastTrial], keep_best: int) -> list[int]:
    """Numbers of the ended trials that keep their checkpoint: the best full runs, the earlier of equals."""
    return [one.number for one in full_runs(trials, trials[0].objective)[:keep_best]] if trials else []


def compare_checkpoints(
    trials: Sequence[PastTrial], stored: Sequence[StoredTrial], keep_best: int, limited: bool
) -> list[Difference]:
    """Checkpoints that should not be there, and those that should; limited: --max-disk may have cost all but the best.

    For a study that no driver has.
    """
    found = []
    best = kept_trials(trials, keep_best)
    kept = {*best, *(trial.number for trial in trials if trial.state is None)}
    for one in stored:
        if one.number not in kept:
            found.append(Difference(one.number, "checkpoint", "its checkpoints should be gone", excess="all"))
        elif one.leftovers:
            text = f"{count_of(len(one.leftovers), 'half-written checkpoint')} ({some_of(one.leftovers)})"
            found.append(Difference(one.number, "checkpoint", text, excess="half-written"))
    complete = {one.number for one in stored if one.epochs}
    for number in best[: 1 if limited else keep_best]:
        if number not in complete:
            text = "it is among the best and its checkpoint is gone; `sctune best` still gives its configuration"
            found.append(Difference(number, "checkpoint", text, repair=None))
    return found
