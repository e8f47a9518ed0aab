"""What is not as the record says, and how it is told. Plain data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from sctune.tracking.events import Child

Kind = Literal[
    "record",
    "run",
    "extra run",
    "parameters",
    "points",
    "state",
    "parent",
    "checkpoint",
    "files",
    "model",
    "alias",
    "version",
    "data",
]
UNFINISHED = "unfinished"
"""Reason of a launch whose trials are all over, and which had no room for its figures or its model."""

_SHOWN = 3


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the record says. trial: its number; name of a reference; None for the study itself.

    repair: the command that mends it, None where none can. late: events on their way would explain it. wrong: ids of
    runs that cannot be mended and have to go: MLflow's parameters and points cannot be changed. excess: which of the
    trial's checkpoints have to go.
    """

    trial: Child | None
    kind: Kind
    text: str
    repair: Literal["sync", "resume"] | None = "sync"
    late: bool = False
    wrong: tuple[str, ...] = ()
    excess: Literal["all", "half-written"] | None = None

    @property
    def line(self) -> str:
        return self.text if self.trial is None else f"{child_text(self.trial)}: {self.text}"


@dataclass(frozen=True)
class StudyState:
    """What is known of the study itself. reason: of the last launch's end, None: it was killed, or none began yet.

    running: a driver has the study now, so that events may be on their way. notes: "": none.
    """

    launches: int
    reason: str | None
    running: bool = False
    all_failed: bool = False
    notes: str = ""


@dataclass(frozen=True)
class Agreement:
    """The outcome of a check. driver: who runs the study now; waiting: differences that may be on the way.

    notes: what could not be compared, and why. references: of those that have been run, or have failed.
    """

    trials: int
    points: int
    differences: tuple[Difference, ...] = field(default=())
    driver: str | None = None
    waiting: int = 0
    notes: tuple[str, ...] = ()
    references: int = 0

    @property
    def agrees(self) -> bool:
        return not self.differences


def settled(differences: Collection[Difference], running: bool) -> tuple[tuple[Difference, ...], int]:
    """What differs for good, and how many differences events on their way explain while a driver runs the study."""
    late = [one for one in differences if running and one.late]
    return tuple(one for one in differences if one not in late), len(late)


def agreement_lines(name: str, result: Agreement) -> list[str]:
    """The outcome for people: one line that all agrees, or one per difference with what mends it."""
    lines = []
    if result.driver is not None:
        way = f"; {count_of(result.waiting, 'thing')} may be on the way to MLflow" if result.waiting else ""
        lines.append(f"study {name} is being run by {result.driver}{way}")
    for one in result.differences:
        lines.append(one.line if one.repair is None else f"{one.line}; `sctune {one.repair} {name}`")
    if result.agrees:
        beside = f", {count_of(result.references, 'reference')}" if result.references else ""
        lines.append(f"record and MLflow agree: {result.trials} trials{beside}, {result.points} points")
    return [*lines, *result.notes]


def child_text(child: Child) -> str:
    """A trial or a reference, in words."""
    return f"reference {child}" if isinstance(child, str) else f"trial {child}"


def some_of(things: Collection[object]) -> str:
    """The first few of them in words, and how many more there are."""
    text = ", ".join(str(thing) for thing in islice(things, _SHOWN))
    return text if len(things) <= _SHOWN else f"{text} and {len(things) - _SHOWN} more"


def count_of(count: int, thing: str) -> str:
    """A number of things, in words."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
