"""Looks at every node before anything is spent, and says what a search does about it.

The same looks and judgements as those of `sctune cluster check`: some faults end the search before it begins, some
cost a node its trials, some are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sctune.errors import ClusterError
from sctune.search.cluster.asking import ask_nodes, limit_of
from sctune.search.cluster.findings import Effect, NodeReport, State
from sctune.search.cluster.judge import judge
from sctune.search.cluster.security import cluster_findings, token_asked
from sctune.search.cluster.wanted import Wanted


@dataclass(frozen=True)
class CheckedNodes:
    """What a search goes on with.

    left_out: id -> one line for each node that gets no trials; warnings: lines to tell.
    """

    left_out: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        return (*self.warnings, *self.left_out.values())


def check_nodes(wanted: Wanted, limit_s: float | None = None) -> CheckedNodes:
    """Ask and judge every node; limit_s: seconds until one that does not answer is left out, None: by the images.

    Raises ClusterError naming the first node with other versions, without the storage, or without a token, and where
    no node is left that could run trials; StorageError where the driver cannot use the storage.
    """
    with token_asked() as token:
        reports = judge(wanted, ask_nodes(wanted, limit_of(wanted) if limit_s is None else limit_s))
        refused = [one for one in cluster_findings(token()) if one.state is State.FAILED]
    if refused:
        raise ClusterError(refused[0].text)
    return decide(reports)


def decide(reports: Sequence[NodeReport]) -> CheckedNodes:
    """What a search does about what was found on the nodes. Raises ClusterError where it does not begin."""
    for report in reports:
        for one in report.with_effect(Effect.REFUSE):
            raise ClusterError(f"node {report.node.name} {one.text}")
    lacking = {
        report.node.id: f"node {report.node.name}: {faults[0].text}"
        for report in reports
        if (faults := report.with_effect(Effect.LEAVE_OUT))
    }
    trains = {report.node.id for report in reports if report.node.trains}
    if lacking and not trains - set(lacking):
        raise ClusterError(f"no node can run trials: {'; '.join(sorted(set(lacking.values()))[:3])}")
    told = [
        f"node {report.node.name}: {one.check}: {one.text}"
        for report in reports
        for one in report.findings
        if one.state is State.WARNING or (one.state is State.FAILED and one.effect is Effect.TELL)
    ]
    left_out = {node: f"{line}; it is left out until the next launch" for node, line in lacking.items()}
    return CheckedNodes(left_out, tuple(told))
