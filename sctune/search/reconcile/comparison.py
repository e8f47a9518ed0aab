"""Whether MLflow and the checkpoints say what the record says. Plain data in, differences out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from sctune.metrics.merit import full_runs
from sctune.metrics.objective import AUROC
from sctune.tracking.callback import PastReference, PastTrial
from sctune.tracking.events import Child, as_key, as_texts, short_metric, shown_metrics, shown_param
from sctune.tracking.runs import RUN_STATUS
from sctune.tracking.stored import Point, StoredRun

Kind = Literal[
    "record",
    "run",
    "extra run",
    "parameters",
    "points",
    "state",
    "parent",
    "checkpoint",
    "files",
    "model",
    "alias",
    "version",
    "data",
]
UNFINISHED = "unfinished"
"""Reason of a launch whose trials are all over, and which had no room for its figures or its model."""
OPEN_STATES = ("RUNNING", "WAITING", "UNFINISHED")
"""Tag `state` of a run whose trial has not ended."""

_SHOWN = 3


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the record says. trial: its number; name of a reference; None for the study itself.

    repair: the command that mends it, None where none can. late: events on their way would explain it. wrong: ids of
    runs that cannot be mended and have to go: MLflow's parameters and points cannot be changed. excess: which of the
    trial's checkpoints have to go.
    """

    trial: Child | None
    kind: Kind
    text: str
    repair: Literal["sync", "resume"] | None = "sync"
    late: bool = False
    wrong: tuple[str, ...] = ()
    excess: Literal["all", "half-written"] | None = None

    @property
    def line(self) -> str:
        return self.text if self.trial is None else f"{_named(self.trial)}: {self.text}"


@dataclass(frozen=True)
class Expected:
    """What MLflow must hold of a trial, or of a reference, whose number is its name. state None: it has not ended.

    points: metric -> epoch -> (value, time). short: the objective's second name.
    """

    number: Child
    params: Mapping[str, str]
    points: Mapping[str, Mapping[int, tuple[float, int]]]
    state: str | None
    value: str | None
    short: str = short_metric(AUROC)

    @property
    def n_points(self) -> int:
        """Points that the record holds; the objective's second name is none of its own."""
        return sum(len(curve) for name, curve in self.points.items() if name != self.short)


@dataclass(frozen=True)
class StudyState:
    """What is known of the study itself. reason: of the last launch's end, None: it was killed, or none began yet.

    running: a driver has the study now, so that events may be on their way.
    """

    launches: int
    reason: str | None
    running: bool = False
    all_failed: bool = False


@dataclass(frozen=True)
class StoredTrial:
    """A trial's folder of checkpoints. epochs: of its complete ones; leftovers: names of half-written ones."""

    number: int
    epochs: tuple[int, ...]
    leftovers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agreement:
    """The outcome of a check. driver: who runs the study now; waiting: differences that may be on the way.

    notes: what could not be compared, and why. references: of those that have been run, or have failed.
    """

    trials: int
    points: int
    differences: tuple[Difference, ...] = field(default=())
    driver: str | None = None
    waiting: int = 0
    notes: tuple[str, ...] = ()
    references: int = 0

    @property
    def agrees(self) -> bool:
        return not self.differences


def expected_run(past: PastTrial | PastReference, shown: Mapping[str, Any]) -> Expected:
    """The run that a recorded trial must have; shown: all parameters that the tracking logs of it."""
    points: dict[str, dict[int, tuple[float, int]]] = {}
    for epoch, report in past.reports.items():
        for name, number in shown_metrics(report["metrics"], past.objective).items():
            points.setdefault(as_key(name), {})[epoch] = (float(number), int(report["time"]))
    params = {name: shown_param(name, text) for name, text in as_texts(shown).items()}
    value = None if past.value is None else repr(float(past.value))
    return Expected(past.number, params, points, past.state, value, short_metric(past.objective))


RESCORED = "rescore"
"""Role of a run that shows how a checkpoint scores in other ways; it is no trial."""


def compare_runs(expected: Sequence[Expected], runs: Sequence[StoredRun], study: StudyState) -> list[Difference]:
    """Where the runs in MLflow differ from the record."""
    parents = [run for run in runs if run.role == "study"]
    by_trial: dict[Child, list[StoredRun]] = {}
    found: list[Difference] = []
    known = {one.number for one in expected}
    for run in runs:
        if run.role in ("study", RESCORED):
            continue
        if run.trial is not None and run.trial in known:
            by_trial.setdefault(run.trial, []).append(run)
        else:
            owner = "no trial" if run.trial is None else _named(run.trial)
            text = f"run {run.run_id} belongs to {owner}, which the record does not hold"
            found.append(Difference(None, "extra run", text, wrong=(run.run_id,)))
    found += _compare_parent(parents, study, bool(expected))
    parent = parents[0].run_id if parents else None
    for one in expected:
        found += compare_trial(one, by_trial.get(one.number, []), parent, study.running)
    return found


def compare_trial(one: Expected, runs: Sequence[StoredRun], parent: str | None, running: bool) -> list[Difference]:
    """Differences of one trial; runs: those with its tag, oldest first; parent: the id of the study's run."""
    number = one.number
    if not runs:
        return [Difference(number, "run", "MLflow has no run of it", late=True)]
    # the best of several stays, the oldest of equals
    checked = [(_content(one, run), run) for run in runs]
    content, run = min(checked, key=lambda pair: (len(pair[0]), pair[1].start))
    found = list(content)
    if len(runs) > 1:
        others = tuple(other.run_id for other in runs if other is not run)
        found.append(Difference(number, "extra run", f"MLflow has {len(runs)} runs of it", wrong=others))
    found += _compare_state(one, run, running)
    if run.parent != parent:
        found.append(Difference(number, "parent", "its run is not nested in the study's run", late=parent is None))
    return found


def _content(one: Expected, run: StoredRun) -> list[Difference]:
    return [*_compare_params(one, run), *_compare_points(one, run)]


def _compare_params(one: Expected, run: StoredRun) -> list[Difference]:
    found = []
    missing = [name for name in one.params if name not in run.params]
    if missing:
        text = f"MLflow lacks {_count(len(missing), 'parameter')} ({_some(missing)})"
        found.append(Difference(one.number, "parameters", text, late=True))
    wrong = [name for name, text in one.params.items() if run.params.get(name, text) != text]
    if wrong:
        texts = [f"{name} is {run.params[name]!r}, recorded {one.params[name]!r}" for name in wrong]
        text = f"MLflow has other parameters ({_some(texts)})"
        found.append(Difference(one.number, "parameters", text, wrong=(run.run_id,)))
    return found


def _compare_points(one: Expected, run: StoredRun) -> list[Difference]:
    missing: list[str] = []
    wrong: list[str] = []
    for metric in sorted({*one.points, *run.points}):
        curve, stored = one.points.get(metric, {}), run.points.get(metric, ())
        steps = [point.step for point in stored]
        missing += [f"{metric} at epoch {epoch}" for epoch in curve if epoch not in steps]
        wrong += _wrong_points(metric, curve, stored)
    found = []
    if missing:
        text = f"MLflow lacks {_count(len(missing), 'point')} ({_some(missing)})"
        found.append(Difference(one.number, "points", text, late=True))
    if wrong:
        text = f"MLflow has {_count(len(wrong), 'other point')} ({_some(wrong)})"
        found.append(Difference(one.number, "points", text, wrong=(run.run_id,)))
    return found


def _wrong_points(metric: str, curve: Mapping[int, tuple[float, int]], stored: Sequence[Point]) -> list[str]:
    by_step: dict[int, list[Point]] = {}
    for point in stored:
        by_step.setdefault(point.step, []).append(point)
    found = []
    for step, points in sorted(by_step.items()):
        place = f"{metric} at epoch {step}"
        first = points[0]
        if step not in curve:
            found.append(f"{place}, which the record does not hold")
        elif len(points) > 1:
            found.append(f"{place} {len(points)} times")
        elif first.value != curve[step][0]:
            found.append(f"{place} is {first.value!r}, recorded {curve[step][0]!r}")
        elif first.time != curve[step][1]:
            found.append(f"{place} has another time")
    return found


def _compare_state(one: Expected, run: StoredRun, running: bool) -> list[Difference]:
    told = run.tags.get("state")
    state = one.state or "UNFINISHED"
    status = RUN_STATUS[one.state] if one.state is not None else "KILLED"
    if one.state is None and running and (told is None or told in OPEN_STATES):
        return []
    if (told, run.status) != (state, status):
        late = one.state is not None and (told is None or told in OPEN_STATES or told == state)
        text = f"MLflow says {told} (run {run.status}), the record {one.state or 'that it has not ended'}"
        return [Difference(one.number, "state", text, late=late)]
    if one.state is not None and run.tags.get("value") != one.value and one.value is not None:
        text = f"MLflow says value {run.tags.get('value')}, the record {one.value}"
        return [Difference(one.number, "state", text)]
    return []


def _compare_parent(parents: Sequence[StoredRun], study: StudyState, any_trial: bool) -> list[Difference]:
    if not parents:
        needed = study.launches > 0 or any_trial
        return [Difference(None, "parent", "MLflow has no run of the study", late=True)] if needed else []
    found = []
    if len(parents) > 1:
        others = tuple(run.run_id for run in parents[1:])
        found.append(Difference(None, "extra run", f"MLflow has {len(parents)} runs of the study", wrong=others))
    wanted = study_status(study)
    first = parents[0]
    if not study.running and (first.status not in wanted or first.tags.get("state") != first.status):
        text = f"MLflow says {first.tags.get('state')} of the study (run {first.status}), not {' or '.join(wanted)}"
        found.append(Difference(None, "parent", text))
    return found


def study_status(study: StudyState) -> tuple[str, ...]:
    """What the run of a study that no driver has may say; the first is what `sync` makes of it."""
    if study.reason == "stopped":
        return ("KILLED",)
    if study.reason in ("done", UNFINISHED):
        return ("FAILED",) if study.all_failed else ("FINISHED",)
    if study.reason == "failed":
        return ("FAILED",)
    # killed: it may have told its end before, which a repair leaves alone
    return ("KILLED", "FAILED", "FINISHED")


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
        text = f"the record's numbers have gaps ({_some(gaps)})" if gaps else f"the record has {_some(twice)} twice"
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
        texts.append(f"the record's curve lacks {_count(len(gaps), 'epoch')} ({_some(gaps)})")
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
            text = f"{_count(len(one.leftovers), 'half-written checkpoint')} ({_some(one.leftovers)})"
            found.append(Difference(one.number, "checkpoint", text, excess="half-written"))
    complete = {one.number for one in stored if one.epochs}
    for number in best[: 1 if limited else keep_best]:
        if number not in complete:
            text = "it is among the best and its checkpoint is gone; `sctune best` still gives its configuration"
            found.append(Difference(number, "checkpoint", text, repair=None))
    return found


def settled(differences: Collection[Difference], running: bool) -> tuple[tuple[Difference, ...], int]:
    """What differs for good, and how many differences events on their way explain while a driver runs the study."""
    late = [one for one in differences if running and one.late]
    return tuple(one for one in differences if one not in late), len(late)


def agreement_lines(name: str, result: Agreement) -> list[str]:
    """The outcome for people: one line that all agrees, or one per difference with what mends it."""
    lines = []
    if result.driver is not None:
        way = f"; {_count(result.waiting, 'thing')} may be on the way to MLflow" if result.waiting else ""
        lines.append(f"study {name} is being run by {result.driver}{way}")
    for one in result.differences:
        lines.append(one.line if one.repair is None else f"{one.line}; `sctune {one.repair} {name}`")
    if result.agrees:
        beside = f", {_count(result.references, 'reference')}" if result.references else ""
        lines.append(f"record and MLflow agree: {result.trials} trials{beside}, {result.points} points")
    return [*lines, *result.notes]


def _named(child: Child) -> str:
    return f"reference {child}" if isinstance(child, str) else f"trial {child}"


def _some(things: Collection[object]) -> str:
    text = ", ".join(str(thing) for thing in islice(things, _SHOWN))
    return text if len(things) <= _SHOWN else f"{text} and {len(things) - _SHOWN} more"


def _count(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
