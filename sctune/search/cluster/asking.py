"""The driver asks every node at once: facts, clock, and the way of a file from one to the other and back.

A node that does not answer in time is named and costs the others nothing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sctune.search.cluster.facts import NodeFacts, NodeProbe
from sctune.search.cluster.findings import Node
from sctune.search.cluster.wanted import Question, Wanted

if TYPE_CHECKING:
    from pyarrow import fs

ANSWER_S = 120.0
"""Seconds that the nodes may take, the start of a worker on each included."""

START_S = 60.0
"""Of these: for the start of the worker."""

READ_BYTES_PER_S = 50e6
"""What the slowest disk or mount reads; images that were read before are not read again."""

PINGS = 5
PING_S = 10.0


@dataclass(frozen=True)
class Clock:
    """How far a node's clock is ahead of the driver's, in seconds, and by how much that may be wrong."""

    offset: float
    bound: float


@dataclass(frozen=True)
class Answer:
    """Of one node. problem: why there are no facts; returned: whether the driver read what the node had written."""

    node: Node
    facts: NodeFacts | None = None
    clock: Clock | None = None
    returned: bool = False
    problem: str | None = None


def limit_of(wanted: Wanted) -> float:
    """Seconds after which a node is taken for one that hangs."""
    return ANSWER_S + wanted.nbytes / READ_BYTES_PER_S


def nodes_of_cluster() -> list[Node]:
    """Those that are alive, in order of their names."""
    import ray

    found = []
    for node in ray.nodes():
        if node["Alive"]:
            has: Mapping[str, float] = node["Resources"]
            host, address = str(node["NodeManagerHostname"]), str(node["NodeManagerAddress"])
            head = "node:__internal_head__" in has
            found.append(Node(node["NodeID"], host, address, has.get("CPU", 0.0), has.get("GPU", 0.0), head))
    return sorted(found, key=lambda one: (one.host, one.address, one.id))


def ask_nodes(wanted: Wanted, limit_s: float) -> list[Answer]:
    """An answer of each node, in order of their names; limit_s: until one that does not answer is given up.

    Raises StorageError where the driver itself cannot use the storage. What was written there is removed.
    """
    nodes = nodes_of_cluster()
    if not wanted.storage:
        return _ask(wanted, nodes, limit_s, None)
    with _marker(wanted.storage, nodes) as marker:
        return _ask(wanted, nodes, limit_s, marker)


@dataclass(frozen=True)
class _Marker:
    """A file that the driver wrote beside the study's folder, which must not exist yet."""

    system: fs.FileSystem
    path: str
    content: bytes

    def returned(self, node: Node) -> bool:
        """Whether the driver reads what a node has written."""
        try:
            with self.system.open_input_stream(self.of(node)) as stream:
                return bool(stream.readall() == self.content)
        except OSError:
            return False

    def of(self, node: Node) -> str:
        return f"{self.path}-{node.id}"


@contextmanager
def _marker(storage: str, nodes: list[Node]) -> Iterator[_Marker]:
    """Written while it lasts; it, what nodes answered, and a folder that had to be made are gone afterwards."""
    from pyarrow import fs

    from sctune.trial.storage import answering, open_storage

    system, root = open_storage(storage)
    parent = root.rpartition("/")[0]
    made: list[str] = []
    marker = _Marker(system, f"{parent}/.sctune-probe-{uuid.uuid4().hex}", uuid.uuid4().bytes)
    with answering(storage):
        made = _missing_folders(system, parent)
        system.create_dir(parent, recursive=True)
        with system.open_output_stream(marker.path) as stream:
            stream.write(marker.content)
    try:
        yield marker
    finally:
        for path in (marker.path, *map(marker.of, nodes)):
            with suppress(OSError):
                system.delete_file(path)
        for folder in made:
            with suppress(OSError):
                if not system.get_file_info(fs.FileSelector(folder)):
                    system.delete_dir(folder)


def _missing_folders(system: fs.FileSystem, folder: str) -> list[str]:
    """Those that will have to be made, the innermost first; an object store has none."""
    from pyarrow import fs

    missing: list[str] = []
    while isinstance(system, fs.LocalFileSystem) and system.get_file_info(folder).type is fs.FileType.NotFound:
        missing.append(folder)
        folder = folder.rpartition("/")[0]
    return missing


def _ask(wanted: Wanted, nodes: list[Node], limit_s: float, marker: _Marker | None) -> list[Answer]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0, max_restarts=0)(NodeProbe)
    # each worker gets the lists of images from the store of its node
    shared = ray.put(wanted)
    actors: dict[str, Any] = {}
    try:
        for node in nodes:
            where = NodeAffinitySchedulingStrategy(node.id, soft=False)
            actors[node.id] = probe.options(scheduling_strategy=where).remote(shared)
        calls = {node.id: actors[node.id].facts.remote(_question(wanted, node, limit_s, marker)) for node in nodes}
        ready, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=limit_s)
        arrived = set(ready)
        answers = []
        for node in nodes:
            if calls[node.id] not in arrived:
                answers.append(Answer(node, problem=f"no answer within {limit_s:.0f} s"))
                continue
            try:
                facts = ray.get(calls[node.id], timeout=PING_S)
                clock = _clock(actors[node.id])
            except ray.exceptions.RayError as problem:
                answers.append(Answer(node, problem=str(problem).strip().splitlines()[-1]))
                continue
            answers.append(Answer(node, facts, clock, marker is not None and marker.returned(node)))
        return answers
    finally:
        for actor in actors.values():
            ray.kill(actor)


def _question(wanted: Wanted, node: Node, limit_s: float, marker: _Marker | None) -> Question:
    return Question(
        marker="" if marker is None else marker.path,
        answer="" if marker is None else marker.of(node),
        content=b"" if marker is None else marker.content,
        trains=node.trains,
        gpus=int(node.gpus) if wanted.on_gpus and wanted.gpus != 0 else 0,
        head=node.head,
        limit_s=max(limit_s - START_S, limit_s / 2),
    )


def _clock(actor: Any) -> Clock | None:
    """By the quickest of a few round trips, in which the node's moment lies; None where it does not answer any more."""
    import ray

    best: Clock | None = None
    for _ in range(PINGS):
        before = time.time()
        try:
            there = float(ray.get(actor.now.remote(), timeout=PING_S))
        except ray.exceptions.GetTimeoutError:
            break
        after = time.time()
        bound = (after - before) / 2
        if best is None or bound < best.bound:
            best = Clock(there - before - bound, bound)
    return best
