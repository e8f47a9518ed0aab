"""The part of a report about the references: what methods that train nothing reach on the same images."""

from __future__ import annotations

from sctune.pages.html import Html, joined, missing, table, tag
from sctune.pages.reading import StudyView, value_text
from sctune.search.study.references import Reference, against_best


def references_section(view: StudyView) -> Html:
    """Each reference beside the best trial, and whether that beats the best of them."""
    result = view.result
    if not result.references:
        return missing("the search ran no references; `sctune search --references` does, before its trials")
    head = ("reference", view.objective.metric, "best trial minus this", "seconds", "state")
    rows = [
        (
            one.name,
            value_text(one.value, result.reference_errors[one.name]),
            _difference(view, one),
            "-" if one.seconds is None else f"{one.seconds:.1f}",
            _state(one),
        )
        for one in result.references
    ]
    return joined([tag("p", _sentence(result.verdict), kind="lead"), table(head, rows)])


def _difference(view: StudyView, one: Reference) -> str:
    best = view.result.best
    if best is None:
        return "-"
    against = against_best(best, view.scores(best.number), [one], view.labels, view.objective)
    if against is None:
        return "-"
    noise = "" if against.error is None else f" +- {against.error:.4f}"
    return f"{against.difference:+.4f}{noise}"


def _state(one: Reference) -> str:
    if one.report is not None:
        return "COMPLETE"
    return "not run yet" if one.failure is None else f"{one.failure['kind']}: {one.failure['message']}"


def _sentence(line: str | None) -> str:
    return "" if line is None else f"{line[0].upper()}{line[1:]}."
