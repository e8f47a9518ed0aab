"""A check of a cluster as people read it: a row for each check, a column for the driver and for each kind of node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sctune.search.cluster.findings import ANSWER, CHECKS, Finding, Node, NodeReport, State

MOST_COLUMNS = 4
"""Up to so many nodes have a column each; of more, those share one whose checks came out alike."""
MOST_NAMED = 3

_WORDS = {State.OK: "ok", State.WARNING: "WARNING", State.FAILED: "FAILED", State.SKIPPED: "-"}


@dataclass(frozen=True)
class Table:
    """header: of the columns; rows: cells, the first one is the check."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def table_of(driver: str, own: Sequence[Finding], reports: Sequence[NodeReport]) -> Table:
    """driver: its host; own: what was found there and at the services."""
    columns = [{one.check: one for one in own}]
    groups = _groups(reports)
    header = [f"driver\n{driver}", *(_names(group) for group in groups)]
    columns += [_cells(group) for group in groups]
    rows = tuple(
        (check, *(_cell(column.get(check)) for column in columns))
        for check in CHECKS
        if any(check in column and not _dull(column[check]) for column in columns)
    )
    return Table(("check", *header), rows)


def _dull(finding: Finding) -> bool:
    """That a node answers goes without saying."""
    return finding.check == ANSWER and finding.state is State.OK


def _groups(reports: Sequence[NodeReport]) -> list[list[NodeReport]]:
    if len(reports) <= MOST_COLUMNS:
        return [[one] for one in reports]
    groups: dict[tuple[tuple[str, State], ...], list[NodeReport]] = {}
    for report in reports:
        groups.setdefault(tuple((one.check, one.state) for one in report.findings), []).append(report)
    return sorted(groups.values(), key=len, reverse=True)


def _names(group: Sequence[NodeReport]) -> str:
    if len(group) == 1:
        return f"{group[0].node.host}\n{group[0].node.address}"
    return f"{len(group)} nodes\n{_listed([report.node.host for report in group])}"


def _cells(group: Sequence[NodeReport]) -> dict[str, Finding]:
    """By check: the finding that all share, else one without its details."""
    cells = {one.check: one for one in group[0].findings}
    for report in group[1:]:
        for one in report.findings:
            if one.detail != cells[one.check].detail:
                cells[one.check] = Finding(one.check, one.state)
    return cells


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return ""
    # what is wrong has a line below the table
    shown = finding.state in (State.OK, State.SKIPPED) and finding.detail
    return finding.detail if shown else _WORDS[finding.state]


def lines_of(own: Sequence[Finding], reports: Sequence[NodeReport]) -> list[str]:
    """One line for each failure and warning, nodes of the same trouble together; failures first."""
    places: dict[Finding, list[str]] = {}
    for finding in own:
        places.setdefault(finding, []).append("the driver")
    for report in reports:
        for finding in report.findings:
            places.setdefault(finding, []).append(_shown(report.node))
    return [
        f"{_WORDS[state]} {one.check}, {_listed(where)}: {one.text}"
        for state in (State.FAILED, State.WARNING)
        for one, where in sorted(places.items(), key=lambda item: CHECKS.index(item[0].check))
        if one.state is state
    ]


def _shown(node: Node) -> str:
    return f"node {node.name}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def verdict(own: Sequence[Finding], reports: Sequence[NodeReport]) -> str:
    """The last line."""
    bad = [report for report in reports if any(one.state is State.FAILED for one in report.findings)]
    wrong = sum(one.state is State.FAILED for one in own)
    total = f"{len(reports)} node{'s' * (len(reports) != 1)}"
    if not bad and not wrong:
        return f"healthy: {total}"
    parts = [f"{len(bad)} of {total}"] * bool(bad) + [f"{wrong} of the driver's own checks"] * bool(wrong)
    return f"not healthy: {' and '.join(parts)} failed"
