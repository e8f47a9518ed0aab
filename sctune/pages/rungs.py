"""How far the trials of a study came: the epochs at which its scheduler compares, and who was stopped where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sctune.search.study.leaderboard import TrialRow
from sctune.search.study.manifest import StudyManifest
from sctune.search.study.scheduling import rule_of


@dataclass(frozen=True)
class Rung:
    """reached: trials that ran this epoch; stopped: numbers of those that early stopping ended there; last: full."""

    epoch: int
    reached: int
    stopped: tuple[int, ...]
    last: bool = False


def rungs(manifest: StudyManifest, rows: Sequence[TrialRow]) -> list[Rung]:
    """One for each rung of the scheduler, each epoch at which a trial was stopped, and the last epoch; ascending."""
    epochs, rule = manifest.full_epochs, rule_of(manifest, manifest.replicate_epochs)
    reached = {row.number: max(row.values, default=0) for row in rows}
    stopped = {row.number: reached[row.number] for row in rows if row.state == "PRUNED"}
    places = sorted({*(rule.rungs if rule else ()), *(place for place in stopped.values() if place), epochs})
    return [
        Rung(
            epoch=place,
            reached=sum(epoch >= place for epoch in reached.values()),
            stopped=tuple(sorted(number for number, epoch in stopped.items() if epoch == place)),
            last=place == epochs,
        )
        for place in places
    ]
