"""`sctune rescore`: how a trained trial would score in other ways, on the selection images, without training."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sctune.confirm.scoring import trained_model
from sctune.errors import StudyError
from sctune.files import replace_files
from sctune.methods.base import Variant
from sctune.metrics.objective import DEFAULT, Objective, find_objective
from sctune.search.reconcile.comparison import RESCORED
from sctune.search.study.leaderboard import TrialRow, best_row, leaderboard
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.paired import compare
from sctune.search.study.record import Record
from sctune.search.study.splits import checked_splits, selection_labels
from sctune.search.study.study import Study
from sctune.tracking.rescored import log_rescored
from sctune.train.rescore import rescored, score_variants

Say = Callable[[list[str]], None]

FORMAT_VERSION = 1
FOLDER = "rescore"
WITH_ERROR = 20
"""Best variants whose difference from the trained way gets a standard error."""


@dataclass(frozen=True)
class ScoredVariant:
    """value: selection objective, mean over the tasks. difference, error: from the trained way, paired."""

    values: Variant
    value: float
    difference: float
    error: float | None = None

    @property
    def clear(self) -> bool:
        return self.error is not None and abs(self.difference) >= 2 * self.error > 0


@dataclass(frozen=True)
class Rescored:
    """trained: as the trial scored; variants: best first, the trained way left out."""

    study: str
    trial: int
    trained: ScoredVariant
    variants: tuple[ScoredVariant, ...]
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    objective: str = DEFAULT

    @property
    def judged_by(self) -> Objective:
        return find_objective(self.objective)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `--json`, and of the file."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        del content["objective"]
        return content | self.judged_by.stated


def run_rescore(study_root: Path, name: str, trial: int | None, say: Say, storage: str | None = None) -> Rescored:
    """Score a trial's checkpoint in every way that makes sense, write the table and show it in MLflow.

    trial: None for the best. Raises StudyError for one that does not exist, CheckpointError where it has no checkpoint.
    """
    study = Study.open(study_root, name, storage)
    manifest = study.manifest
    row = _row(study, trial)
    splits = checked_splits(manifest, study.folder)
    labels = selection_labels(manifest, splits)
    variants = score_variants(manifest.config_of(row.params))
    say([f"trial {row.number}: {len(variants)} ways to score, on the selection images of {len(splits)} task(s)"])
    totals = [0.0] * len(variants)
    scores: list[dict[str, list[float]]] = [{} for _ in variants]
    for task in manifest.tasks:
        trainer = trained_model(study, row, task, splits[task.key])
        for number, (value, raw) in enumerate(rescored(trainer, variants)):
            totals[number] += value / len(manifest.tasks)
            scores[number] |= {f"{task.key}:{part}" if part else task.key: one for part, one in raw.items()}
    order = sorted(_distinct(scores), key=lambda number: -study.objective.merit(totals[number]))
    found = [ScoredVariant(variants[number], totals[number], totals[number] - totals[0]) for number in order]
    numbered = dict(enumerate(scores))
    for place, number in enumerate(order[:WITH_ERROR]):
        found[place] = replace(found[place], error=compare(number, 0, numbered, labels, study.objective).error)
    trained = ScoredVariant(variants[0], totals[0], 0.0)
    report = Rescored(study.name, row.number, trained, tuple(found), objective=study.objective.name)
    files = _write(study, report)
    warnings = log_rescored(
        manifest.tracking_uri,
        manifest.study_id,
        RESCORED,
        row.number,
        study.objective.metric,
        [totals[0], *(one.value for one in found)],
        files,
    )
    return replace(report, files=tuple(map(str, files)), warnings=tuple(warnings))


def _distinct(scores: list[dict[str, list[float]]]) -> list[int]:
    """Numbers of the variants whose scores no earlier one has: few cells give many shares of them the same top."""
    seen = {repr(scores[0])}
    kept = []
    for number, one in enumerate(scores[1:], 1):
        text = repr(one)
        if text not in seen:
            seen.add(text)
            kept.append(number)
    return kept


def better_variant(study: Study, trial: int) -> Variant | None:
    """The best stored way to score a trial that is told apart from the trained one; None where there is none.

    Raises StudyError where the trial was not rescored.
    """
    path = study.folder / FOLDER / f"trial-{trial:04d}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version {content['format_version']}")
        rows = [ScoredVariant(**row) for row in content["variants"]]
    except FileNotFoundError:
        raise StudyError(f"trial {trial} was not rescored; run `sctune rescore {study.name} --trial {trial}`") from None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise StudyError(f"{path} cannot be read: {problem}; run `sctune rescore {study.name}` again") from None
    best = rows[0] if rows else None
    return best.values if best is not None and best.clear and study.objective.merit(best.difference) > 0 else None


def rescored_lines(found: Rescored, shown: int = 10) -> list[str]:
    """The best ways, in words."""
    if not found.variants:
        return [f"as trained: {found.judged_by.metric} {found.trained.value:.4f}; its method has no other way to score"]
    lines = [f"as trained: {found.judged_by.metric} {found.trained.value:.4f}  ({_text(found.trained.values)})"]
    for one in found.variants[:shown]:
        error = "" if one.error is None else f" +- {one.error:.4f}"
        lines.append(f"  {one.value:.4f}  {one.difference:+.4f}{error}{' *' if one.clear else ''}  {_text(one.values)}")
    clear = sum(one.clear for one in found.variants)
    measured = min(WITH_ERROR, len(found.variants))
    lines.append(
        f"* differs by more than two paired standard errors ({clear} of the best {measured} do); "
        f"{len(found.variants)} other ways were tried on the same images, so the best of them is flattered: `sctune "
        f"confirm {found.study} --rescored` tries it on fresh seeds"
    )
    return lines


def _row(study: Study, trial: int | None) -> TrialRow:
    with closing(Record(study.record_url, study.name)) as record:
        rows = leaderboard(record.load(), study.objective)
    _refuse_test(study.manifest)
    row = best_row(rows, study.objective) if trial is None else next((row for row in rows if row.number == trial), None)
    if row is None and trial is None:
        raise StudyError(f"study {study.name} has no full run yet; go on with `sctune resume {study.name}`")
    if row is None:
        numbers = ", ".join(str(number) for number in sorted(row.number for row in rows)) or "none"
        raise StudyError(f"study {study.name} has no trial {trial}; its trials: {numbers}")
    return row


def _refuse_test(manifest: StudyManifest) -> None:
    if manifest.selection.mode == "test":
        raise StudyError(
            f"study {manifest.name} selects on its test images; choosing how to score by them would decide by the test"
        )


def _write(study: Study, report: Rescored) -> list[Path]:
    stem = study.folder / FOLDER / f"trial-{report.trial:04d}"
    names = list(report.trained.values)
    ways = (report.trained, *report.variants)
    rows = [(*(one.values[name] for name in names), one.value, one.difference, one.error) for one in ways]

    def table(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([(*names, report.judged_by.metric, "difference", "standard_error"), *rows])

    def document(path: Path) -> None:
        path.write_text(json.dumps(report.to_dict(), indent=1), encoding="utf-8")

    return replace_files({stem.with_suffix(".csv"): table, stem.with_suffix(".json"): document}, "--study-root")


def _text(values: Variant) -> str:
    return ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in values.items())
