"""Who may have how many trials where several searches run on one cluster: by weight, and nothing stays idle.

Slots are given one by one to the search that has the smallest part of the cluster by its weight, counted by whichever
it takes more of, CPUs or GPUs: weighted dominant resource fairness (Ghodsi et al., NSDI 2011, algorithm 1). A slot that
cannot be divided (three for two searches, one for two) goes to the one that has had less so far, as in start-time fair
queueing (Goyal et al., SIGCOMM 1996), and changes hands after TURN_S.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sctune.search.cluster.connection import fits

TURN_S = 300.0
"""Seconds of the whole cluster, by weight, that count as the same: for so long a slot that is left over stays."""

MANY = 1_000_000
"""Trials of a search that would take all that it gets."""

_EPSILON = 1e-9


@dataclass(frozen=True)
class Claim:
    """What a driver says of itself to the others of a cluster.

    key: of the launch. weight: 0 where it does not share, and takes what it gets. cpus, gpus: of a trial. live: trials
    that it has handed to Ray; running: those of them that have a worker; wanted: how many it could have at a time.
    served: seconds of the whole cluster that it has had, over its weight. beat: grows while the driver lives. since:
    ISO 8601 in UTC.
    """

    key: str
    study: str
    owner: str
    weight: float
    cpus: float
    gpus: float
    live: int = 0
    running: int = 0
    wanted: int = 0
    served: float = 0.0
    beat: int = 0
    since: str = ""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_json(content: bytes) -> Claim | None:
        """None for anything but what `to_json` gives: another version's says nothing to this one."""
        try:
            return Claim(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def part(self, nodes: Sequence[Mapping[str, float]]) -> float:
        """Part of the cluster that a trial takes, of what it takes more of; in 0 .. 1."""
        have = [sum(float(node.get(kind, 0)) for node in nodes) for kind in ("CPU", "GPU")]
        parts = [took / total for took, total in zip((self.cpus, self.gpus), have, strict=True) if total > 0]
        return min(1.0, max(parts, default=1.0))


def shares(nodes: Sequence[Mapping[str, float]], claims: Collection[Claim]) -> dict[str, int]:
    """Key of each claim -> trials that it may have at a time.

    nodes: resources of each node, {"CPU": .., "GPU": ..}. Whoever does not share keeps what it has, and counts as
    one of weight 1 beside that. Where it leaves nothing, one of those that share may wait in Ray's queue all the same.
    """
    room = _Room(nodes)
    given = dict.fromkeys((claim.key for claim in claims), 0)
    for claim in claims:
        if claim.weight == 0:
            while given[claim.key] < claim.running and room.take(claim):
                given[claim.key] += 1
    waiting = sorted((claim for claim in claims if claim.wanted > given[claim.key]), key=_turn)
    first = next((claim for claim in waiting if claim.weight), None)
    part = {claim.key: claim.part(nodes) / (claim.weight or 1.0) for claim in waiting}
    while waiting:
        # the first of equals: they are in the order of their turns
        claim = min(waiting, key=lambda one: round(given[one.key] * part[one.key], 9))
        if room.take(claim):
            given[claim.key] += 1
        else:
            waiting.remove(claim)
        if given[claim.key] >= claim.wanted and claim in waiting:
            waiting.remove(claim)
    if first is not None and not any(given[claim.key] for claim in claims if claim.weight):
        given[first.key] = 1
    return given


def slots(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """Trials of one kind that the nodes hold at a time."""
    return sum(fits(node, cpus, gpus) for node in nodes)


def drivers_table(nodes: Sequence[Mapping[str, float]], claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """A row for each driver of a cluster, those that came first at the top: column -> value.

    waiting: trials in Ray's queue; may_have: what it may have at a time, None where it does not share; room: what the
    whole cluster holds of its trials.
    """
    may_have = shares(nodes, claims)
    return [
        {
            "study": claim.study,
            "owner": claim.owner,
            "share": claim.weight or None,
            "running": claim.running,
            "waiting": claim.live - claim.running,
            "may_have": may_have[claim.key] if claim.weight else None,
            "room": slots(nodes, claim.cpus, claim.gpus),
            "trial": f"{claim.cpus:g} CPU, {claim.gpus:g} GPU",
            "since": claim.since,
        }
        for claim in sorted(claims, key=lambda one: (one.since, one.key))
    ]


def _turn(claim: Claim) -> tuple[int, str, str]:
    """Who comes first of equals: who has had less, in steps of TURN_S, then who was there before."""
    return int(claim.served // TURN_S), claim.since, claim.key


class _Room:
    """What is free on each node, as trials are put there one after another."""

    def __init__(self, nodes: Sequence[Mapping[str, float]]) -> None:
        self._free = [[float(node.get("CPU", 0)), float(node.get("GPU", 0))] for node in nodes]

    def take(self, claim: Claim) -> bool:
        """Whether there was room for a trial."""
        # a GPU is shared by equal parts only
        gpus = 1 / int(1 / claim.gpus + _EPSILON) if 0 < claim.gpus < 1 else claim.gpus
        for node in self._free:
            if node[0] >= claim.cpus - _EPSILON and node[1] >= gpus - _EPSILON:
                node[0] -= claim.cpus
                node[1] -= gpus
                return True
        return False
