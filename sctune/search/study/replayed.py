"""What another scheduler would have saved and lost, in figures and lines; and what those that it stopped were worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import TrialState
from scipy import stats

from sctune.metrics.objective import Objective
from sctune.search.rules.audit import is_audited
from sctune.search.rules.registry import NO_RULE
from sctune.search.study.manifest import SchedulerSpec, StudyManifest
from sctune.search.study.replay import Curve, Curves, Fate, Outcome, replay
from sctune.search.study.scheduling import rule_by, rule_of

LEAST_FOR_TAU = 4
"""Trials that a rank correlation takes."""
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Replayed:
    """A study under a scheduler. spent: epochs, as far as known; most: with those that cannot be known run to the end;
    full: epochs of all trials without any stop. best, value: the best full run and its objective, None where there is
    none; regret: what is lost to the best of all full runs that are stored, in units of the objective, None likewise.
    """

    scheduler: SchedulerSpec
    outcomes: Mapping[int, Outcome]
    spent: int
    most: int
    full: int
    best: int | None
    value: float | None
    regret: float | None

    def count(self, fate: Fate) -> int:
        return sum(one.fate is fate for one in self.outcomes.values())

    @property
    def saved(self) -> tuple[float, float]:
        """Least and largest share of the epochs that is saved."""
        return (1 - self.most / self.full, 1 - self.spent / self.full) if self.full else (0.0, 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.scheduler.model_dump(),
            **{fate.name.lower(): self.count(fate) for fate in Fate},
            "epochs": {"spent": self.spent, "most": self.most, "full": self.full},
            "best_trial": self.best,
            "best_value": self.value,
            "regret": self.regret,
            "trials": {
                str(number): {"fate": one.fate.name, "epoch": one.epoch} for number, one in self.outcomes.items()
            },
        }


def replayed(manifest: StudyManifest, curves: Curves, scheduler: SchedulerSpec) -> Replayed:
    """What another scheduler makes of all trials, none of them audited; ConfigError for one that cannot be."""
    rule = rule_by(manifest, scheduler, curves.epochs // manifest.replicates)
    return _summed(manifest, curves, scheduler, replay(curves, rule))


def as_it_was(manifest: StudyManifest, curves: Curves) -> Replayed:
    """The study with its own scheduler and its own exceptions; ConfigError where that is not installed here."""
    outcomes = replay(curves, rule_of(manifest, curves.epochs // manifest.replicates), curves.by_number)
    return _summed(manifest, curves, manifest.scheduler, outcomes)


def _summed(
    manifest: StudyManifest, curves: Curves, scheduler: SchedulerSpec, outcomes: Mapping[int, Outcome]
) -> Replayed:
    objective, whole = manifest.build_objective(), final_merits(curves)
    kept = {number: whole[number] for number, one in outcomes.items() if one.fate is Fate.COMPLETE}
    best = _best(kept)
    # what a failure cost, no scheduler saves
    counted = {number: one for number, one in outcomes.items() if curves.by_number[number].state is not TrialState.FAIL}
    return Replayed(
        scheduler=scheduler,
        outcomes=outcomes,
        spent=sum(one.epoch for one in counted.values()),
        most=sum(
            curves.last_epoch(number) if one.fate is Fate.UNKNOWN else one.epoch for number, one in counted.items()
        ),
        full=sum(curves.last_epoch(number) for number in counted),
        best=best,
        value=None if best is None else objective.merit(kept[best]),
        regret=None if best is None else max(whole.values()) - kept[best],
    )


def differing(curves: Curves, own: Replayed) -> list[int]:
    """Numbers of the ended trials that a replay of the study as it was makes something else of than happened."""
    same = {TrialState.COMPLETE: (Fate.COMPLETE,), TrialState.PRUNED: (Fate.STOPPED, Fate.PAUSED)}
    return [
        one.number
        for one in curves.ended
        if own.outcomes[one.number].fate not in same[one.state] or own.outcomes[one.number].epoch != one.end
    ]


def final_merits(curves: Curves) -> dict[int, float]:
    """Of the trials that are stored to their end."""
    return {number: one.points[-1][1] for number, one in curves.by_number.items() if one.full and one.points}


@dataclass(frozen=True)
class RungAgreement:
    """Kendall's tau between the merits at a rung and at the end, with its interval; None: of too few trials."""

    epoch: int
    trials: int
    tau: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Audit:
    """What the audited trials of a study tell of those that it stopped.

    trials: audited and run to their end; stopped: of these, those that the scheduler would have stopped; better: of
    these, those that end above the best full run that it let through. lost: chance that at least one of the
    `really_stopped` other trials, which the study did stop, would have ended above it too, with its interval, from the
    share better / stopped; None where nothing is known. cost: epochs that the audited trials took after their stop.
    """

    trials: int
    stopped: int
    better: int
    really_stopped: int
    lost: tuple[float, float, float] | None
    cost: int
    rungs: tuple[RungAgreement, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "trials": self.trials,
            "would_be_stopped": self.stopped,
            "better_than_what_was_let_through": self.better,
            "stopped_in_the_study": self.really_stopped,
            "chance_that_a_better_one_was_stopped": None
            if self.lost is None
            else dict(zip(("value", "low", "high"), self.lost, strict=True)),
            "epochs": self.cost,
            "rungs": [vars(one) for one in self.rungs],
        }


def audit_of(manifest: StudyManifest, curves: Curves) -> Audit | None:
    """None for a study without audited trials."""
    rule = rule_by(manifest, manifest.scheduler, curves.epochs // manifest.replicates)
    if rule is None or not manifest.audit:
        return None
    audited = {number for number in curves.by_number if is_audited(number, manifest.audit, manifest.sampler_seed)}
    outcomes, merits = replay(curves, rule, curves.by_number.keys() - audited), final_merits(curves)
    ran = sorted(audited & merits.keys())
    stopped = [number for number in ran if outcomes[number].fate in (Fate.STOPPED, Fate.PAUSED)]
    let_through = [merits[number] for number in merits if outcomes[number].fate is Fate.COMPLETE]
    better = sum(merits[number] > max(let_through) for number in stopped) if let_through else 0
    really = sum(one.state is TrialState.PRUNED and number not in audited for number, one in curves.by_number.items())
    return Audit(
        trials=len(ran),
        stopped=len(stopped),
        better=better,
        really_stopped=really,
        lost=_lost(better, len(stopped), really) if let_through else None,
        cost=sum(curves.by_number[number].end - outcomes[number].epoch for number in stopped),
        rungs=tuple(agreement([curves.by_number[number] for number in ran], rung) for rung in rule.rungs),
    )


def agreement(curves: Sequence[Curve], epoch: int) -> RungAgreement:
    """How well the order at an epoch is that at the end, of full curves that are longer; percentile interval over
    resampled trials.
    """
    known = [one for one in curves if one.end > epoch and epoch in dict(one.points)]
    pairs = np.array([(dict(one.points)[epoch], one.points[-1][1]) for one in known])
    if len(pairs) < LEAST_FOR_TAU or any(len(set(column)) < 2 for column in pairs.T):
        return RungAgreement(epoch, len(pairs), None, None, None)
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(pairs), (RESAMPLES, len(pairs)))
    taus = np.array([stats.kendalltau(*pairs[rows].T).statistic for rows in draws])
    # a resample of equal values has no order
    low, high = np.quantile(taus[np.isfinite(taus)], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return RungAgreement(epoch, len(pairs), float(stats.kendalltau(*pairs.T).statistic), float(low), float(high))


def _lost(better: int, stopped: int, really: int) -> tuple[float, float, float] | None:
    if not stopped or not really:
        return None
    share = better / stopped
    interval = stats.binomtest(better, stopped).proportion_ci(CONFIDENCE)
    value, low, high = (float(1 - (1 - one) ** really) for one in (share, interval.low, interval.high))
    return value, low, high


def _best(merits: Mapping[int, float]) -> int | None:
    return max(merits, key=lambda number: (merits[number], -number), default=None)


def table_of(rows: Sequence[Replayed], objective: Objective) -> tuple[list[str], list[list[str]]]:
    """Head and cells of a table with a line for each scheduler."""
    fates = [fate for fate in Fate if any(row.count(fate) for row in rows)]
    told = "" if all(row.scheduler.stop_confidence is None for row in rows) else ", confidence"
    head = [f"scheduler, grace, factor{told}", *(fate.value for fate in fates), "saved", "best"]
    return [*head, objective.label, "lost"], [_cells(row, fates) for row in rows]


def _cells(row: Replayed, fates: Sequence[Fate]) -> list[str]:
    spec, (low, high) = row.scheduler, (100 * share for share in row.saved)
    given = [] if spec.name == NO_RULE else [spec.grace, spec.factor, spec.stop_confidence]
    setting = [f"{value:g}" for value in given if value is not None]
    saved = f"{high:.0f} %" if row.spent == row.most else f"{low:.0f} to {high:.0f} %"
    best = ["-", "-", "-"] if row.value is None else [str(row.best), f"{row.value:.4f}", f"{row.regret:.4f}"]
    return [", ".join([spec.name, *setting]), *(str(row.count(fate)) for fate in fates), saved, *best]


def audit_lines(found: Audit) -> list[str]:
    lines = [
        f"audited: {found.trials} trial(s) ran to their end whatever the scheduler said. It would have stopped "
        f"{found.stopped} of them and saved {found.cost} epochs; {found.better} of these end above the best it let "
        "through"
    ]
    if found.lost is not None:
        value, low, high = (100 * one for one in found.lost)
        lines.append(
            f"chance that one of the {found.really_stopped} that it did stop would have ended above it too: "
            f"{value:.0f} % ({low:.0f} to {high:.0f} %)"
        )
    for rung in found.rungs:
        text = "too few" if rung.tau is None else f"{rung.tau:+.2f} ({rung.low:+.2f} to {rung.high:+.2f})"
        lines.append(
            f"order at epoch {rung.epoch} against that at the end, Kendall's tau: {text} ({rung.trials} trials)"
        )
    return lines
