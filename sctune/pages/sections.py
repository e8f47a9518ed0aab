"""The parts of a report that need no drawing: each is HTML, with a reason where there is nothing to show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sctune.config import yaml_text
from sctune.errors import SctuneError
from sctune.pages.commands import SPACE_FILE, command, is_shipped, search_words
from sctune.pages.html import Html, facts, joined, missing, picture, table, tag
from sctune.pages.reading import StudyView, figure, ranked, value_text
from sctune.pages.rungs import rungs
from sctune.search.reconcile.delivery import BEST, FIGURES, read_model
from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.paired import compare, has_scores
from sctune.search.study.replay import curves_of
from sctune.search.study.replayed import audit_lines, audit_of
from sctune.text import duration
from sctune.urls import without_secrets

MOST_COMPARED = 60
"""Full runs that are compared with the best one, in their order."""
_BEST = {
    "pseudo_anomalies.png": "Pseudo anomalies: donor, receiver, saliency of the donor, mask, result",
    "roc.png": "ROC curve on the selection images",
    "scores.png": "Scores of the selection images",
}


def header(view: StudyView) -> Html:
    """What it is, when it ran and on what."""
    manifest, data = view.manifest, view.manifest.data
    versions = ", ".join(f"{package} {version}" for package, version in manifest.versions.items())
    rows: list[tuple[object, object]] = [
        ("owner", manifest.owner or "not recorded"),
        *([("notes", manifest.notes)] if manifest.notes else []),
        ("begun", manifest.created),
        ("launches", "; ".join(view.launches.lines())),
        ("data", f"{data.name}, digest {data.digest}"),
        (
            "images",
            ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in data.counts.items()) or "not counted",
        ),
        ("licence", data.licence or "not stated"),
        ("attribution", data.attribution or "none asked for"),
        ("selection", f"{manifest.selection.mode}: {manifest.selection.reason or 'asked for'}"),
        ("seeds", _seeds(view)),
        ("versions", versions or "not recorded"),
        ("git commit", manifest.git_commit or "an installed package"),
    ]
    return joined([tag("h1", f"Study {view.name}"), facts(rows)])


def summary(view: StudyView) -> Html:
    """The best trial, its noise, and what it cannot be told apart from."""
    result, counts = view.result, view.counts
    states = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no trial yet"
    lines: list[object] = [
        tag("p", f"{len(result.rows)} of {view.manifest.trials} trials: {states}; {duration(result.seconds)} in all.")
    ]
    lines += [tag("p", view.launches.lines()[0], ".")] if view.launches.driver is not None else []
    lines += [tag("p", one.line, ".") for one in result.priors]
    lines += [tag("p", f"{result.ended_by_itself}.")] if result.ended_by_itself else []
    best = result.best
    if best is None:
        failed = counts.get("FAIL", 0) == len(result.rows) and bool(result.rows)
        why = "every trial failed" if failed else "no trial has run to the end"
        return joined([*lines, missing(f"{why}, so there is no best trial"), *_failures(view)])
    lines.append(
        tag("p", "Best: trial ", best.number, f", {view.objective.metric} ",
            tag("b", value_text(best.value, result.noise)),
            " (standard error over the scored images)" if result.noise is not None else "", kind="lead")
    )  # fmt: skip
    lines.append(facts((name, figure(value)) for name, value in best.params.items()))
    lines += [tag("p", line) for line in _certainty(view)]
    lines += [tag("p", f"{line}.") for line in (result.certainty.lines if result.certainty else ())]
    return joined([*lines, *(tag("p", note, kind="soft") for note in result.notes), *_failures(view)])


def rung_table(view: StudyView) -> Html:
    """How many trials reached each rung, and who was stopped where."""
    spec, rows = view.manifest.scheduler, view.result.rows
    if not rows:
        return missing("the study has no trial yet")
    found = rungs(view.manifest, rows)
    cells = [
        (
            f"{one.epoch}{' (last)' if one.last else ''}",
            one.reached,
            len(one.stopped),
            ", ".join(map(str, one.stopped)) or "-",
        )
        for one in found
    ]
    what = "no early stopping" if spec.name == "none" else f"scheduler {spec.name}, factor {spec.factor}"
    what += "" if spec.stop_confidence is None else f", stop confidence {spec.stop_confidence:g}"
    audit = audit_of(view.manifest, curves_of(view.manifest, view.trials))
    told = [] if audit is None else [tag("p", line) for line in audit_lines(audit)]
    return joined([tag("p", f"{what}."), table(("epoch", "reached", "stopped here", "trials stopped"), cells), *told])


def leaderboard_table(view: StudyView) -> Html:
    """Every trial in order of merit; full runs that the best one is not told apart from say so."""
    rows = view.result.rows
    if not rows:
        return missing("the study has no trial yet")
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    apart = _apart(view)
    head = ("", "trial", "state", "epochs", view.objective.metric, "against the best", "seconds", *names, "ended by")
    cells = [
        (
            place,
            row.number,
            joined([tag("span", kind=f"state {row.state}"), row.state]),
            max(row.values, default=0),
            "-" if row.value is None else f"{row.value:.4f}",
            apart.get(row.number, ""),
            "-" if row.seconds is None else f"{row.seconds:.1f}",
            *(figure(row.params[name]) if name in row.params else "" for name in names),
            _end(row),
        )
        for place, row in enumerate(rows, 1)
    ]
    return table(head, cells, kind="trials")


def gallery(view: StudyView) -> Html:
    """Pictures of the best trial as the last launch that ended made them, and those of `sctune figures`."""
    study, attribution = view.study, view.manifest.data.attribution
    try:
        model = read_model(study)
    except SctuneError as problem:
        return missing(problem)
    parts: list[object] = []
    best = view.result.best
    number = None if model is None else int(model["meta"]["trial"])
    for name, caption in _BEST.items():
        path = study.folder / BEST / name
        if number is not None and path.is_file():
            parts.append(picture(path, f"{caption} (trial {number}).", caption))
    if number is not None and best is not None and best.number != number:
        parts.insert(
            0, tag("p", f"Of trial {number}, the best when the last launch ended; by now it is {best.number}.")
        )
    parts += [picture(path, f"{path.stem}, by `sctune figures`.", path.stem) for path in _made(study.folder / FIGURES)]
    if parts and attribution:
        parts.append(tag("p", f"Images: {attribution}; so are these pictures.", kind="soft"))
    if parts:
        return joined(parts)
    return missing(f"pictures are made when a launch ends with a full run; `sctune resume {study.name}` makes them")


def cost(view: StudyView) -> Html:
    """What it took, and what early stopping saved."""
    spent, resources = view.cost, view.manifest.resources
    rows: list[tuple[object, object]] = [
        ("time of all launches", duration(view.result.seconds)),
        ("references", f"{spent.reference_seconds:.1f} s"),
        ("core-hours", f"{spent.core_hours:.3g}"),
        ("GPU-hours", f"{spent.gpu_hours:.3g}"),
        ("epochs run", spent.epochs),
        (
            "early stopping saved",
            f"{100 * spent.saved_share:.0f} % of the epochs of all ended trials, about {spent.saved_hours:.3g} "
            f"{spent.unit}",
        ),
        ("resources of a trial", f"{resources.cpus:g} cores, {resources.gpus:g} GPUs"),
        ("trials at a time", resources.max_concurrent),
    ]
    note = "Hours are the seconds of all reported epochs (training and scoring) times the resources of a trial."
    return joined([facts(rows), tag("p", note, kind="soft")])


def repeat(view: StudyView) -> Html:
    """The commands that make the study again, and those that go on from it."""
    manifest = view.manifest
    name = manifest.name
    lines = [
        command(search_words(manifest, f"{name[:74]}-again")),
        "",
        f"sctune status {name}",
        f"sctune best {name} > best.yaml",
        f"sctune confirm {name} --top 3 --n-seeds 5",
        f"sctune report {name} --out report.html",
    ]
    parts: list[object] = [tag("pre", "\n".join(lines))]
    if manifest.git_commit:
        parts.insert(0, tag("p", f"With sctune at commit {manifest.git_commit}:"))
    if not is_shipped(manifest):
        text = yaml_text({"format_version": 1, **manifest.space})
        parts += [tag("p", f"{SPACE_FILE}, the space of this study:"), tag("pre", text)]
    order = (
        "Trials that run side by side end in an order of their own, so that a sampler that learns may propose others"
        if manifest.look_behind is None
        else f"A trial is drawn and judged by those before it less {manifest.look_behind} alone, whatever ran when"
    )
    note = f"{order}; with the same configuration and seed a trial is the same on the same machine."
    return joined([*parts, tag("p", note, kind="soft")])


def setup(view: StudyView) -> Html:
    """The complete base configuration and where things lie."""
    manifest = view.manifest
    rows: list[tuple[object, object]] = [
        ("space", manifest.space.get("name")),
        ("profile", manifest.profile),
        ("tasks", ", ".join(task.key for task in manifest.tasks)),
        ("sampler", f"{manifest.sampler}, seed {manifest.sampler_seed}"),
        *((f"prior {one.name}", one.note) for one in manifest.priors),
        ("scheduler", manifest.scheduler.name),
        ("MLflow", view.result.tracking_uri),
        ("checkpoints", without_secrets(manifest.storage_path)),
    ]
    flat = [(name, "" if value is None else figure(value)) for name, value in manifest.trial_config().flat().items()]
    fields = tag("details", tag("summary", f"Base configuration, {len(flat)} fields"), table(("field", "value"), flat))
    return joined([facts(rows), fields])


def _seeds(view: StudyView) -> str:
    manifest = view.manifest
    tasks = ", ".join(str(seed) for seed in dict.fromkeys(task.seed for task in manifest.tasks))
    return f"tasks {tasks}; partition {manifest.partition_seed}; sampler {manifest.sampler_seed}"


def _certainty(view: StudyView) -> list[str]:
    result, lines = view.result, []
    full = len(ranked(view))
    if result.noise is not None:
        if result.indistinct:
            lines.append(
                f"Top {result.indistinct + 1} of {full} full runs not distinguishable: they differ from the best by "
                "less than two paired standard errors."
            )
        elif full > 1:
            lines.append(f"The best is told apart from the {full - 1} other full run(s).")
        elif result.certainty is None:
            lines.append("It is the only full run, so there is nothing to tell it apart from.")
    if result.gap is not None:
        verdict = "more" if result.gap.clear else "not more"
        lines.append(
            f"Best and median full run ({result.gap.second}) differ by {result.gap.difference:+.4f} +- "
            f"{result.gap.error:.4f}: {verdict} than two paired standard errors."
        )
    return lines


def _apart(view: StudyView) -> dict[int, str]:
    """Trial -> how far from the best it is, for full runs."""
    rows = ranked(view)[:MOST_COMPARED]
    if view.labels is None or not rows:
        return {}
    scores = {row.number: view.scores(row.number) for row in rows}
    found = {rows[0].number: "the best"}
    for row in rows[1:]:
        if not all(has_scores(scores[number], view.labels) for number in (rows[0].number, row.number)):
            found[row.number] = "no scores are kept"
            continue
        gap = compare(row.number, rows[0].number, scores, view.labels, view.objective)
        told = "told apart" if gap.clear else "not distinguishable"
        found[row.number] = f"{gap.difference:+.4f} +- {gap.error:.4f}, {told}"
    return found


def _end(row: TrialRow) -> str:
    if row.failure:
        return f"{row.failure.get('kind', 'failure')}: {row.failure.get('message', '')}"
    return row.stop_reason or ""


def _failures(view: StudyView) -> Sequence[Any]:
    failed = [row for row in view.result.rows if row.failure]
    if not failed:
        return []
    return [tag("h3", "Failures"), table(("trial", "what"), [(row.number, _end(row)) for row in failed])]


def _made(folder: Path) -> list[Path]:
    """Pictures of `sctune figures`; those with test images stay out of a report that decides nothing by them."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [
        folder / name for name in names if name.startswith("trial-") and name.endswith(".png") and "-test-" not in name
    ]
