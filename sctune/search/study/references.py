"""The references of a search: methods that train nothing, as its record holds them, and the best trial against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sctune.config import TrialConfig, load_profile, method_entry
from sctune.metrics.objective import Objective
from sctune.report import EpochReport, merge_reports
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.paired import MIN_GAP, has_scores, paired, value_se
from sctune.text import duration

REPORT, FAILURE, TIME = "report", "failure", "time"
"""What the record keeps of a task: an EpochReport's dictionary, or {"kind", "message"}; and when, in ms since 1970."""

BACKBONE = "model.backbone"
TIME_SHARE = 0.1
"""Of a search's time: the references get no more of it."""

Scores = Mapping[str, Sequence[float]]
Labels = Mapping[str, Sequence[int]]


def reference_fields(base: TrialConfig, name: str, profile: str) -> dict[str, Any]:
    """What makes a study's base the reference of this name: its method, with the settings that it has by default.

    profile: gives the backbone where the base's own method has none. Raises ConfigError for a method that is not here.
    """
    fields: dict[str, Any] = {"method.name": name}
    entry = method_entry(name)
    if base.method.name == name:
        # a study of that very method: another name would have reset these
        own = entry.section.model_fields.items()
        fields |= {f"method.{leaf}": field.default for leaf, field in own if leaf != "name"}
    if not base.entry.looks_at(BACKBONE):
        usual = load_profile(profile).flat()
        fields |= {field: usual[field] for field in (BACKBONE, "model.weights") if entry.looks_at(field)}
    return fields


def stored_name(name: str, task: str) -> str:
    """Under which the record keeps the result of a reference on a task."""
    return f"{name}:{task}"


@dataclass(frozen=True)
class Reference:
    """A reference as the record has it. report: over all tasks, None while one of them has none.

    missing: keys of the tasks without a result. failure: {"kind", "message"} of the first task that failed. begun,
    told: when the first and the latest result came, in ms since 1970.
    """

    name: str
    report: EpochReport | None = None
    missing: tuple[str, ...] = ()
    failure: Mapping[str, str] | None = None
    begun: int = 0
    told: int = 0

    @property
    def value(self) -> float | None:
        return None if self.report is None else self.report.value

    @property
    def seconds(self) -> float | None:
        return None if self.report is None else self.report.metrics.get("seconds")

    @property
    def state(self) -> str | None:
        """As of a trial: COMPLETE or FAIL; None while it is neither."""
        return "COMPLETE" if self.report is not None else "FAIL" if self.failure is not None else None


def read_references(manifest: StudyManifest, stored: Mapping[str, Mapping[str, Any]]) -> tuple[Reference, ...]:
    """The references that the study asked for, in its order; stored: what `Record.load_references` gives."""
    return tuple(_reference(name, [task.key for task in manifest.tasks], stored) for name in manifest.references)


def _reference(name: str, keys: Sequence[str], stored: Mapping[str, Mapping[str, Any]]) -> Reference:
    found = {key: stored[stored_name(name, key)] for key in keys if stored_name(name, key) in stored}
    reports = {key: EpochReport.from_dict(one[REPORT]) for key, one in found.items() if REPORT in one}
    times = [int(one[TIME]) for one in found.values()]
    return Reference(
        name=name,
        report=merge_reports(reports) if len(reports) == len(keys) else None,
        missing=tuple(key for key in keys if key not in reports),
        failure=next((one[FAILURE] for one in found.values() if FAILURE in one), None),
        begun=min(times, default=0),
        told=max(times, default=0),
    )


@dataclass(frozen=True)
class Against:
    """The best trial against the best reference, by their objectives on the same images.

    difference: trial minus reference in the objective's own units; ahead: the same, positive where the trial is better;
    error: paired standard error, None where the images or some scores are gone. unbeaten: another reference, where the
    best one is beaten and that one is not.
    """

    trial: int
    reference: str
    value: float
    difference: float
    ahead: float
    error: float | None
    unbeaten: Against | None = None

    @property
    def beats(self) -> bool | None:
        """Whether the trial is better than every reference by more than two paired standard errors; None: unknown."""
        return None if self.error is None else self._ahead_enough and self.unbeaten is None

    @property
    def loses(self) -> bool:
        return self.error is not None and -self.ahead > MIN_GAP * self.error > 0

    @property
    def _ahead_enough(self) -> bool:
        return self.error is not None and self.ahead > MIN_GAP * self.error > 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "trial": self.trial,
            "reference": self.reference,
            "difference": self.difference,
            "se": self.error,
            "beats": self.beats,
            "unbeaten": None if self.unbeaten is None else self.unbeaten.to_dict(),
        }


def best_reference(references: Sequence[Reference], objective: Objective) -> Reference | None:
    """The first of equals; None where none was run on all tasks."""
    whole = [(one, one.value) for one in references if one.value is not None]
    return max(whole, key=lambda pair: objective.merit(pair[1]))[0] if whole else None


def against_best(
    best: TrialRow, scores: Scores, references: Sequence[Reference], labels: Labels | None, objective: Objective
) -> Against | None:
    """The best trial, with its scores, against the best reference; None where there is none. labels: of the images."""
    rival = best_reference(references, objective)
    if rival is None:
        return None
    found = _against(best, scores, rival, labels, objective)
    if found is None or not found.beats:
        return found
    # one that is worse in the mean may hang on other images, so that less is known of the difference
    others = (_against(best, scores, one, labels, objective) for one in references if one is not rival)
    return replace(found, unbeaten=next((one for one in others if one is not None and one.beats is False), None))


def _against(
    best: TrialRow, scores: Scores, rival: Reference, labels: Labels | None, objective: Objective
) -> Against | None:
    if rival.report is None or rival.value is None or best.value is None:
        return None
    other = rival.report.scores
    difference, error = best.value - rival.value, None
    if (
        labels is not None
        and scores.keys() == other.keys()
        and has_scores(scores, labels)
        and has_scores(other, labels)
    ):
        difference, error = paired(scores, other, labels, objective)
    # a better trial has the higher merit
    return Against(best.number, rival.name, rival.value, difference, objective.merit(difference), error)


def reference_error(one: Reference, labels: Labels | None, objective: Objective) -> float | None:
    """Standard error of its objective, None where it cannot be told."""
    if labels is None or one.report is None or not has_scores(one.report.scores, labels):
        return None
    return value_se(one.report.scores, labels, objective)


def reference_line(one: Reference, error: float | None, objective: Objective) -> str:
    """A reference in a line for people."""
    if one.value is not None:
        noise = "" if error is None else f" +- {error:.4f}"
        took = "" if one.seconds is None else f", in {duration(one.seconds)}"
        return f"reference {one.name}: {objective.label} {one.value:.4f}{noise}{took}"
    if one.failure is not None:
        return f"reference {one.name} was left out: {one.failure['message']}"
    return f"reference {one.name} has not been run yet"


def verdict_line(
    references: Sequence[Reference], against: Against | None, has_best: bool, objective: Objective
) -> str | None:
    """Whether the best trial beats the best reference: the last line of a search. None where none was asked for."""
    if not references:
        return None
    rival = best_reference(references, objective)
    if rival is None:
        why = "; ".join(f"{one.name}: {one.failure['message']}" for one in references if one.failure)
        return f"no reference to compare the best trial with ({why or 'none has been run yet'})"
    named = f"the best reference ({rival.name} {rival.value:.4f})"
    if not has_best or against is None:
        return f"no full run to compare with {named}"
    trial = f"the best trial ({against.trial})"
    if against.error is None:
        return f"{trial} differs from {named} by {against.difference:+.4f}; no standard error is known"
    gap = f"{against.difference:+.4f} +- {against.error:.4f}"
    if against.loses:
        return f"{trial} does not beat {named}, which is better: {gap}, more than two paired standard errors"
    if against.unbeaten is not None and against.unbeaten.error is not None:
        other = against.unbeaten
        return (
            f"{trial} does not beat every reference: {named} by {gap}, more than two paired standard errors, but "
            f"{other.reference} {other.value:.4f} by {other.difference:+.4f} +- {other.error:.4f}, not more"
        )
    word, more = ("beats", "more") if against.beats else ("does not beat", "not more")
    return f"{trial} {word} {named}: {gap}, {more} than two paired standard errors"
