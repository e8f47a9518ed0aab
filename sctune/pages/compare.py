"""`sctune compare`: studies side by side, what keeps them from being compared, and whether their best trials differ."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sctune.errors import StudyError
from sctune.metrics.merit import merit_of
from sctune.pages.reading import StudyView, figure, ranked, value_text, view_study
from sctune.search.study.paired import Gap, compare
from sctune.search.study.references import best_reference
from sctune.text import duration

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Pair:
    """The best trials of two studies, or the two best of one, by name; gap: None where they cannot be paired.

    reason: why not.
    """

    first: str
    second: str
    gap: Gap | None
    reason: str | None = None

    @property
    def line(self) -> str:
        if self.gap is None:
            return f"{self.first} and {self.second}: no paired difference, {self.reason}"
        verdict = "told apart" if self.gap.clear else "not told apart (below two standard errors)"
        return f"{self.first} minus {self.second}: {self.gap.difference:+.4f} +- {self.gap.error:.4f}, {verdict}"

    def to_dict(self) -> dict[str, Any]:
        gap = self.gap
        found = None if gap is None else {"difference": gap.difference, "se": gap.error, "clear": gap.clear}
        return {"first": self.first, "second": self.second, "gap": found, "reason": self.reason}


@dataclass(frozen=True)
class Comparison:
    """views: in the order asked for; warnings: what keeps studies from being compared with the first one."""

    views: tuple[StudyView, ...]
    warnings: tuple[str, ...]
    pairs: tuple[Pair, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """The table: name of the line, then a cell for each study."""
        columns = [_cells(view) for view in self.views]
        names = dict.fromkeys(name for column in columns for name in column)
        return [(name, *(column.get(name, "") for column in columns)) for name in names]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `--json`."""
        return {
            "format_version": FORMAT_VERSION,
            "studies": [_document(view) for view in self.views],
            "warnings": list(self.warnings),
            "pairs": [pair.to_dict() for pair in self.pairs],
        }


def compare_studies(root: Path, names: Sequence[str], storage: str | None = None) -> Comparison:
    """Read these studies and compare them; raises StudyError for a missing one or one that is named twice."""
    twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    if twice:
        raise StudyError(f"study {twice[0]!r} is named twice; name each once")
    views = tuple(view_study(root, name, storage) for name in names)
    warnings = [line for view in views[1:] for line in differences(views[0], view)]
    warnings += [f"{view.name}: {note}" for view in views for note in view.result.notes]
    return Comparison(views, tuple(warnings), tuple(_pairs(views)))


def differences(first: StudyView, other: StudyView) -> list[str]:
    """Why the values of two studies are not of the same thing, a line each."""
    a, b = first.manifest, other.manifest
    facts: list[tuple[str, object, object]] = [
        ("data digest", f"{a.data.name} {a.data.digest[:12]}", f"{b.data.name} {b.data.digest[:12]}"),
        ("selection mode", a.selection.mode, b.selection.mode),
        ("objective", a.objective, b.objective),
        ("partition seed", a.partition_seed, b.partition_seed),
        ("tasks", ", ".join(t.key for t in a.tasks), ", ".join(t.key for t in b.tasks)),
        ("scored images", sorted(a.splits.items()), sorted(b.splits.items())),
        ("profile", a.profile, b.profile),
        ("epochs", a.trial_config().epochs, b.trial_config().epochs),
    ]
    found = [(name, x, y) for name, x, y in facts if x != y]
    if any(name != "scored images" for name, _, _ in found):
        # it follows from those above
        found = [one for one in found if one[0] != "scored images"]
    lines = []
    for name, x, y in found:
        values = "other lists of files" if name == "scored images" else f"{name} {y}, not {x}"
        lines.append(f"{b.name} is not comparable with {a.name}: {values}")
    return lines


def same_images(first: StudyView, other: StudyView) -> str | None:
    """None where the trials of both have the same figure of the same images in the same order, else why not."""
    a, b = first.manifest, other.manifest
    if a.objective != b.objective:
        return "they were searched by other objectives"
    if first.labels is None or other.labels is None:
        return "the images of one of them are gone"
    if a.data.digest != b.data.digest:
        return "their data differ"
    if a.splits != b.splits or first.labels != other.labels:
        return "they were scored on other images"
    return None


def _pairs(views: Sequence[StudyView]) -> list[Pair]:
    if len(views) == 1:
        best = ranked(views[0])[:2]
        if len(best) < 2:
            return []
        return [_pair(views[0], best[0].number, views[0], best[1].number)]
    # better minus worse, as people read a difference
    with_best = sorted(
        (view for view in views if view.result.best is not None),
        key=lambda view: -merit_of(view.result.best, views[0].objective),  # type: ignore[arg-type]
    )
    return [
        _pair(a, a.result.best.number, b, b.result.best.number)  # type: ignore[union-attr]
        for a, b in itertools.combinations(with_best, 2)
    ]


def _pair(a: StudyView, first: int, b: StudyView, second: int) -> Pair:
    names = (f"{a.name} trial {first}", f"{b.name} trial {second}")
    reason = same_images(a, b)
    scores = {0: a.scores(first), 1: b.scores(second)}
    if reason is None and not all(scores.values()):
        reason = "one of them kept no scores"
    if reason is None and scores[0].keys() != scores[1].keys():
        reason = "their objectives are made of other parts"
    if reason is not None or a.labels is None:
        return Pair(*names, None, reason)
    return Pair(*names, compare(0, 1, scores, a.labels, a.objective))


def _cells(view: StudyView) -> dict[str, str]:
    manifest, result, cost = view.manifest, view.result, view.cost
    best = result.best
    cells = {
        "best value": value_text(best.value if best else None, result.noise),
        "best trial": str(best.number) if best else "-",
        **_reference_cells(view),
        "trials": ", ".join(f"{count} {state}" for state, count in view.counts.items()) or "none",
        "space": str(manifest.space.get("name")),
        "data": f"{manifest.data.name} ({manifest.data.digest[:12]})",
        "selection": manifest.selection.mode,
        **view.objective.stated,
        "partition seed": str(manifest.partition_seed),
        "tasks": ", ".join(task.key for task in manifest.tasks),
        "profile": manifest.profile,
        "sampler, scheduler": f"{manifest.sampler}, {manifest.scheduler.name}",
        "time": duration(result.seconds),
        cost.unit: f"{cost.hours:.3g}",
        "early stopping saved": f"{100 * cost.saved_share:.0f} % of the epochs, {cost.saved_hours:.3g} {cost.unit}",
    }
    return cells | {f"  {name}": figure(value) for name, value in (best.params.items() if best else ())}


def _reference_cells(view: StudyView) -> dict[str, str]:
    """Nothing for a study without references: where no study has any, the table has no such line."""
    result = view.result
    rival = best_reference(result.references, result.objective)
    if rival is None:
        return {}
    found = {"best reference": f"{value_text(rival.value, result.reference_errors[rival.name])} ({rival.name})"}
    against = result.against
    if against is not None:
        noise = "" if against.error is None else f" +- {against.error:.4f}"
        found["best trial minus it"] = f"{against.difference:+.4f}{noise}"
    return found


def _document(view: StudyView) -> dict[str, Any]:
    manifest, result, cost = view.manifest, view.result, view.cost
    best = result.best
    return {
        "study": view.name,
        "best_trial": best.number if best else None,
        "best_value": best.value if best else None,
        "best_value_se": result.noise,
        "best_params": best.params if best else None,
        "references": result.reference_rows,
        "best_vs_reference": None if result.against is None else result.against.to_dict(),
        "states": view.counts,
        "space": manifest.space.get("name"),
        "data": {"name": manifest.data.name, "digest": manifest.data.digest},
        "selection": manifest.selection.mode,
        **view.objective.stated,
        "partition_seed": manifest.partition_seed,
        "tasks": [task.key for task in manifest.tasks],
        "profile": manifest.profile,
        "seconds": result.seconds,
        "core_hours": cost.core_hours,
        "gpu_hours": cost.gpu_hours,
        "saved_core_hours": cost.saved_core_hours,
        "saved_gpu_hours": cost.saved_gpu_hours,
        "epochs_saved_share": cost.saved_share,
    }
