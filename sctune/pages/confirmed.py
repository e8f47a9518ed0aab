"""The parts of a report about the test images: what a confirmation found, and every look that was taken."""

from __future__ import annotations

from sctune.confirm.gallery import galleries
from sctune.confirm.results import Confirmation, final_lines, further_rivals, gap_text, read_confirmation
from sctune.errors import StudyError
from sctune.metrics.statistics import Estimate
from sctune.pages.html import Html, facts, joined, missing, picture, table, tag
from sctune.pages.reading import figure
from sctune.search.study.ledger import looks
from sctune.search.study.study import Study


def confirm_section(study: Study) -> Html:
    """The configurations on fresh seeds, and the one look at the test."""
    try:
        found = read_confirmation(study)
    except StudyError as problem:
        return missing(problem)
    if found is None:
        return missing(
            f"the study has not been confirmed; `sctune confirm {study.name}` retrains its best configurations on "
            "fresh seeds, and opens the test images then"
        )
    rows = [
        (
            place,
            found.label(one.name),
            "-" if one.trial is None else one.trial,
            f"{one.mean:.4f}",
            "-" if one.std is None else f"{one.std:.4f}",
            "-" if one.search_value is None else f"{one.search_value:.4f}",
            ", ".join(f"{name}={figure(value)}" for name, value in one.fields.items()),
        )
        for place, one in enumerate(found.ranking, 1)
    ]
    seeds = ", ".join(map(str, found.seeds))
    return joined(
        [
            tag("p", f"Retrained on the fresh seeds {seeds} (study {found.confirm_study}), selection by {found.mode}; "
                f"ranked by the selection objective, and written down at {found.written}."),
            table(("place", "name", "trial", "mean", "std over seeds", "in the search", "fields"), rows),
            _test(found),
            *_finals(study, found),
            *(tag("p", note, kind="soft") for note in found.notes),
        ]
    )  # fmt: skip


def looks_section(study: Study) -> Html:
    """The leak ledger."""
    try:
        rows = looks(study)
    except StudyError as problem:
        return missing(problem)
    if not rows:
        return tag("p", "The test images have not been looked at (0 looks).")
    times = "once" if len(rows) == 1 else f"{len(rows)} times"
    head = ("when", "command", "images", "models", "trials by then", "decided")
    cells = [(one.time, one.command, one.images, one.models, one.trials, one.decided) for one in rows]
    return joined([tag("p", f"The test images have been looked at {times}."), table(head, cells)])


def _test(found: Confirmation) -> Html:
    test = found.test
    if test is None:
        return missing("the test images have not been opened by the confirmation")
    normal, anomalous = test.images
    rows: list[tuple[object, object]] = [
        ("test images", f"{normal} normal, {anomalous} anomalous, opened {test.opened}"),
        (f"winner: {found.label(found.winner.name)}", _interval(test.winner)),
    ]
    if test.reference is not None:
        rows.append((f"compared with: {test.against}", _interval(test.reference)))
    if test.difference is not None:
        apart = test.difference.low > 0 or test.difference.high < 0
        told = f"{_interval(test.difference, sign=True)}, {'told apart' if apart else 'not told apart'}"
        rows.append(("paired difference", told))
    for one in further_rivals(test):
        rows.append((f"compared with: {found.label(one.name)}", _interval(one.estimate)))
        rows.append((f"the winner minus {one.name}", gap_text(one.difference)))
    if test.optimism_search is not None:
        rows.append(("selection optimism of the search", f"{test.optimism_search:+.4f} (its value minus the test)"))
    if test.optimism_confirm is not None:
        rows.append(("selection optimism on fresh seeds", f"{test.optimism_confirm:+.4f}"))
    for model in test.models:
        rows.append(
            (
                f"model{' of ' + model.subset if model.subset else ''}",
                f"seed {model.seed}, test AUROC {model.test_auroc:.4f}"
                + (f", escapes {model.escapes}" if model.escapes else "")
                + (f", false alarms {model.false_alarms}" if model.false_alarms else ""),
            )
        )
    return joined([tag("h3", "On the test images, which decided nothing"), facts(rows)])


def _finals(study: Study, found: Confirmation) -> list[Html]:
    """Final forms of the winner beside its single model, with the pictures of their escapes that are here."""
    if not found.finals:
        return []
    parts = [tag("h3", "Final models, beside the single one")]
    for final in found.finals:
        parts += [tag("p", line.strip()) for line in final_lines(final)]
        for path in galleries(study, found, final):
            parts.append(picture(path, f"Escapes before and after: {path.stem}.", path.stem))
    return parts


def _interval(found: Estimate, sign: bool = False) -> str:
    form = "+.4f" if sign else ".4f"
    std = "" if found.std is None else f", std over seeds {found.std:.4f}"
    p = "" if found.p is None else f", p {found.p:.3f}"
    return f"{found.value:{form}} (95 % interval {found.low:{form}} to {found.high:{form}}{std}{p})"
