"""What a search gives: the study's trials in order of merit, the best of them, and where to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial

from sctune.metrics.merit import merit_of
from sctune.metrics.objective import AUROC, Objective
from sctune.search.rules.race import further_replicates
from sctune.search.rules.registry import RACE
from sctune.search.study.leaderboard import TrialRow, best_row, leaderboard
from sctune.search.study.manifest import LittleGain, StudyManifest
from sctune.search.study.paired import Gap, compare, has_scores, value_se
from sctune.search.study.proposals import PriorUse, prior_uses
from sctune.search.study.racing import Certainty, certainty
from sctune.search.study.references import (
    Against,
    Reference,
    against_best,
    reference_error,
    reference_line,
    verdict_line,
)
from sctune.search.study.study import Study
from sctune.text import duration


@dataclass(frozen=True)
class StudyResult:
    """A study as it stands. rows: trials in order of merit; noise: standard error of the best value.

    equal: full runs, the best one counted in, whose value is exactly the best one's.
    gap: the best full run against the median one; indistinct: full runs not told apart from the best one.
    saved_share: share of the epochs of all ended trials that early stopping did not spend. little_gain: it ended by
    itself, before its trials were through.
    references: what was run beside the trials, with the standard error of each in reference_errors; against: the best
    trial against the best of them. certainty: of the best trial, in a study with replicates. priors: who proposed the
    trials.
    """

    name: str
    folder: Path
    rows: tuple[TrialRow, ...]
    best: TrialRow | None
    noise: float | None
    gap: Gap | None
    indistinct: int
    equal: int
    saved_share: float
    seconds: float
    tracking_uri: str
    parent_run_id: str | None = None
    stopped: bool = False
    out_of_time: bool = False
    exhausted: str | None = None
    unwritten: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    objective: Objective = AUROC
    references: tuple[Reference, ...] = ()
    reference_errors: Mapping[str, float | None] = field(default_factory=dict)
    against: Against | None = None
    certainty: Certainty | None = None
    priors: tuple[PriorUse, ...] = ()
    little_gain: LittleGain | None = None

    @property
    def saved_seconds(self) -> float | None:
        """Training time of the trials that `little_gain` left out, as long as the others took; None: not known."""
        spent = [row.seconds for row in self.rows if row.state in ("COMPLETE", "PRUNED") and row.seconds is not None]
        return None if self.little_gain is None or not spent else self.little_gain.left * fmean(spent)

    @property
    def ended_by_itself(self) -> str | None:
        """Why, what that saved, and how to go on all the same; None for a study that did not."""
        found, seconds = self.little_gain, self.saved_seconds
        if found is None:
            return None
        time = "" if seconds is None else f" and about {duration(seconds)} of training"
        return (
            f"ended by itself after {found.after} of {found.after + found.left} trials: the other {found.left} were "
            f"expected to improve {self.objective.label} by {found.gain:.4f}, less than --min-gain {found.asked:g}; "
            f"that saved {found.left} trial(s){time}; more: `sctune resume {self.name} --trials +{found.left}`"
        )

    @property
    def way_on(self) -> str | None:
        """How a study goes on that was stopped or met a full disk at its end, for people; None for one that is done."""
        if self.unwritten and not self.stopped:
            return (
                f"the disk is full: {', '.join(self.unwritten)} could not be written; make room, then `sctune sync "
                f"{self.name}`"
            )
        if not self.stopped:
            return None
        if self.out_of_time:
            return f"time budget spent; go on with `sctune resume {self.name} --time-budget` and a longer one, or none"
        return f"stopped; go on with `sctune resume {self.name}`"

    @property
    def verdict(self) -> str | None:
        """Whether the best trial beats the best reference, in a line; None where none was asked for."""
        return verdict_line(self.references, self.against, self.best is not None, self.objective)

    @property
    def reference_rows(self) -> list[dict[str, Any]]:
        """The references as JSON values."""
        return [
            {
                "name": one.name,
                "value": one.value,
                "se": self.reference_errors.get(one.name),
                "seconds": one.seconds,
                "failure": None if one.failure is None else dict(one.failure),
            }
            for one in self.references
        ]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `--json`."""
        best = self.best
        return {
            "format_version": 1,
            "study": self.name,
            "folder": str(self.folder),
            **self.objective.stated,
            "best_trial": best.number if best else None,
            "best_value": best.value if best else None,
            "best_params": best.params if best else None,
            "best_value_se": self.noise,
            "best_vs_median": None
            if self.gap is None
            else {
                "trial": self.gap.second,
                "difference": self.gap.difference,
                "se": self.gap.error,
                "clear": self.gap.clear,
            },
            "equal_to_best": self.equal,
            "references": self.reference_rows,
            "best_vs_reference": None if self.against is None else self.against.to_dict(),
            **({"priors": [vars(one) for one in self.priors]} if self.priors else {}),
            "epochs_saved_share": self.saved_share,
            "seconds": self.seconds,
            "certainty": None if self.certainty is None else self.certainty.to_dict(),
            "stopped": self.stopped,
            "exhausted": self.exhausted,
            "little_gain": None
            if self.little_gain is None
            else {**self.little_gain.model_dump(), "seconds_saved": self.saved_seconds},
            "tracking_uri": self.tracking_uri,
            "parent_run_id": self.parent_run_id,
            "notes": list(self.notes),
            "trials": [
                {
                    "number": row.number,
                    "state": row.state,
                    "params": row.params,
                    "value": row.value,
                    "values": {str(epoch): value for epoch, value in row.values.items()},
                    "stop_reason": row.stop_reason,
                    "failure": row.failure,
                    "seconds": row.seconds,
                    "epoch_seconds": row.epoch_seconds,
                    "gpus": row.gpus,
                    "gpu_memory_mb": row.gpu_memory_mb,
                    "gpu_reserved_mb": row.gpu_reserved_mb,
                    "gpu_utilisation": row.gpu_utilisation,
                }
                for row in sorted(self.rows, key=lambda row: row.number)
            ],
        }


def study_result(
    study: Study,
    trials: Sequence[FrozenTrial],
    labels: Mapping[str, Sequence[int]] | None,
    seconds: float,
    *,
    tracking_uri: str,
    parent_run_id: str | None = None,
    stopped: bool = False,
    exhausted: str | None = None,
    notes: Sequence[str] = (),
    references: Sequence[Reference] = (),
) -> StudyResult:
    """Sum up the record; labels (task key -> labels of the scored images) give the noise, None leaves it out."""
    objective = study.objective
    rows = leaderboard(trials, objective)
    best = best_row(rows, objective)
    scores, notes = {trial.number: trial.user_attrs.get("scores", {}) for trial in trials}, [*notes]
    full = [row for row in rows if row.state == "COMPLETE"]
    noise, gap, indistinct = None, None, 0
    if best is not None and labels is not None:
        # never against a stopped one, whose value is that of an earlier epoch
        ranked = sorted((row for row in full if row.value is not None), key=lambda row: merit_of(row, objective))
        median = ranked[(len(ranked) - 1) // 2]
        unscored = sorted({r.number for r in (median, *full) if not has_scores(scores[r.number], labels)})
        if unscored:
            notes.append(_unscored_line(unscored))
        told = {number: row for number, row in scores.items() if number not in unscored}
        if best.number in told:
            noise = value_se(told[best.number], labels, objective)
            if median.number in told and median.number != best.number:
                gap = compare(best.number, median.number, told, labels, objective)
            others = [row.number for row in full if row.number in told and row.number != best.number]
            indistinct = sum(not compare(best.number, other, told, labels, objective).clear for other in others)
    return StudyResult(
        name=study.name,
        folder=study.folder,
        rows=tuple(rows),
        best=best,
        noise=noise,
        gap=gap,
        indistinct=indistinct,
        equal=sum(row.value == best.value for row in full) if best is not None else 0,
        saved_share=_saved_share(rows, study.manifest),
        seconds=seconds,
        tracking_uri=tracking_uri,
        parent_run_id=parent_run_id,
        stopped=stopped,
        exhausted=exhausted,
        notes=tuple(notes),
        objective=objective,
        references=tuple(references),
        reference_errors={one.name: reference_error(one, labels, objective) for one in references},
        certainty=None if best is None else _certainty(study, rows, best),
        against=None if best is None else against_best(best, scores[best.number], references, labels, objective),
        priors=prior_uses(study.manifest, trials),
        # of the launch that is ending, which the manifest does not know yet, `finish` tells it
        little_gain=study.manifest.little_gain,
    )


def _saved_share(rows: Sequence[TrialRow], manifest: StudyManifest) -> float:
    """Of the epochs of all ended trials."""
    epochs = manifest.full_epochs
    ended = [row for row in rows if row.state in ("COMPLETE", "PRUNED")]
    spent = sum(max(row.values, default=0) for row in ended)
    # a full run has spent what it had: one epoch where its method trains nothing
    due = sum(max(row.values, default=0) if row.state == "COMPLETE" else epochs for row in ended)
    if manifest.scheduler.name == RACE:
        # nobody expects all replicates of all trials
        replicates = len(ended) + further_replicates(len(ended), manifest.replicates)
        due = min(due, replicates * manifest.replicate_epochs)
    return max(0.0, 1 - spent / due) if due else 0.0


def _certainty(study: Study, rows: Sequence[TrialRow], best: TrialRow) -> Certainty | None:
    manifest = study.manifest
    if manifest.replicates == 1:
        return None
    return certainty(rows, best.number, manifest.replicate_epochs, study.objective)


def _unscored_line(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (" ..." if len(numbers) > 5 else "")
    return f"no standard errors of trial(s) {shown}: the record does not hold their scores of the selection images"


def summary_lines(result: StudyResult) -> list[str]:
    """The end of a search in words: best configuration, how sure it is, what early stopping saved, the references.

    Without `verdict`, which is the last line of what a command prints.
    """
    counts = {
        state: sum(row.state == state for row in result.rows) for state in ("COMPLETE", "PRUNED", "FAIL", "RUNNING")
    }
    lines = [
        f"study {result.name}: "
        + (", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no trial yet")
        + f" in {duration(result.seconds)}; early stopping saved {100 * result.saved_share:.0f} % of the epochs"
    ]
    lines += [one.line for one in result.priors]
    lines += [line for line in (result.exhausted, result.ended_by_itself) if line]
    if result.best is not None and result.best.value is not None:
        noise = "" if result.noise is None else f" +- {result.noise:.4f} (standard error over the scored images)"
        lines.append(f"best: trial {result.best.number}, {result.objective.metric} {result.best.value:.4f}{noise}")
        lines += [f"  {name} = {value}" for name, value in result.best.params.items()]
    if result.equal > 1:
        label = result.objective.label
        lines.append(f"{result.equal} full runs are exactly equal in {label}; the best is the first of them by number")
    if result.gap is not None:
        gap = result.gap
        verdict = "more" if gap.clear else "not more"
        lines.append(
            f"best and median full run ({gap.second}) differ by {gap.difference:+.4f} +- {gap.error:.4f}: "
            f"{verdict} than two paired standard errors"
        )
        if result.indistinct:
            lines.append(f"{result.indistinct} other full run(s) cannot be told apart from the best")
    if result.certainty is not None:
        lines += result.certainty.lines
    lines += [reference_line(one, result.reference_errors[one.name], result.objective) for one in result.references]
    return [*lines, *result.notes]
