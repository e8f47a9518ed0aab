"""What was found on a node or on the driver: plain data, which a search acts on and `sctune cluster check` shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

ANSWER, VERSIONS, CLOCK, DATA, WEIGHTS = "answer", "versions", "clock", "data", "weights"
STORAGE, GPUS, MEMORY, DISK = "storage", "GPUs", "memory", "disk"
TOKEN, PORTS, TRACKING, DATABASE = "token", "ports", "MLflow", "database"
CHECKS = (
    *(ANSWER, VERSIONS, CLOCK, DATA, WEIGHTS, STORAGE, GPUS, MEMORY, DISK),
    *(TOKEN, PORTS, TRACKING, DATABASE),
)
"""In the order of the table."""


class State(StrEnum):
    """How a check came out; skipped: there was nothing to look at."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


class Effect(StrEnum):
    """What a search does about a check that failed: say it, give the node no trials, or not begin."""

    TELL = "tell"
    LEAVE_OUT = "leave out"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Finding:
    """One check at one place. detail: what was found, in one line; advice: what to do about it."""

    check: str
    state: State
    detail: str = ""
    advice: str = ""
    effect: Effect = Effect.TELL

    @property
    def text(self) -> str:
        return f"{self.detail}; {self.advice}" if self.advice else self.detail

    def to_dict(self) -> dict[str, Any]:
        return {"check": self.check, "state": self.state.value, "detail": self.detail, "advice": self.advice}


def ok(check: str, detail: str = "") -> Finding:
    return Finding(check, State.OK, detail)


def skipped(check: str, detail: str = "") -> Finding:
    return Finding(check, State.SKIPPED, detail)


def warning(check: str, detail: str, advice: str) -> Finding:
    return Finding(check, State.WARNING, detail, advice)


def failed(check: str, detail: str, advice: str, effect: Effect = Effect.TELL) -> Finding:
    return Finding(check, State.FAILED, detail, advice, effect)


def of_error(check: str, problem: object, effect: Effect = Effect.TELL, way_out: str = "") -> Finding:
    """From an error of ours, whose line ends with the way out; way_out: where it has none."""
    detail, _, advice = " ".join(str(problem).split()).rpartition("; ")
    return failed(check, detail or advice, advice if detail else way_out, effect)


@dataclass(frozen=True)
class Node:
    """A node of the cluster, as Ray lists it. cpus, gpus: what Ray may give to trials there; head: Ray's head."""

    id: str
    host: str
    address: str
    cpus: float
    gpus: float
    head: bool

    @property
    def name(self) -> str:
        return f"{self.host} ({self.address})"

    @property
    def trains(self) -> bool:
        """A node without CPUs runs no trials, and needs nothing that trials do."""
        return self.cpus > 0


@dataclass(frozen=True)
class NodeReport:
    node: Node
    findings: tuple[Finding, ...]

    def with_effect(self, effect: Effect) -> list[Finding]:
        return [one for one in self.findings if one.state is State.FAILED and one.effect is effect]

    def to_dict(self) -> dict[str, Any]:
        node = self.node
        return {
            "id": node.id,
            "host": node.host,
            "address": node.address,
            "cpus": node.cpus,
            "gpus": node.gpus,
            "checks": [one.to_dict() for one in self.findings],
        }


def worst(findings: Iterable[Finding]) -> State:
    """The state that the whole is in; ok where there is nothing."""
    states = {one.state for one in findings}
    return next((state for state in (State.FAILED, State.WARNING) if state in states), State.OK)
