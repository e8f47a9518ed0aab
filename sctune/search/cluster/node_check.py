"""Looks at every node before anything is spent: storage and versions as the driver's, the images, room to cache."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sctune.data.place import Needs, check_place
from sctune.errors import ClusterError, PlaceError
from sctune.paths import cache_here

ANSWER_S = 120
"""Seconds that the nodes may take, the start of a worker on each included."""


def check_nodes(storage: str, versions: Mapping[str, str], needs: Needs | None = None) -> dict[str, str]:
    """Every node sees the storage and has the driver's versions; raises ClusterError naming those that do not.

    Gives id -> one line for each node that lacks the images or room for them, and so gets no trials; ClusterError
    where all lack them. Nodes without CPUs run none and need no images.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from sctune.trial.storage import answering, open_storage

    # beside the study's own folder, which must not exist yet
    system, root = open_storage(storage)
    parent = root.rpartition("/")[0]
    marker = f"{parent}/.sctune-probe-{uuid.uuid4().hex}"
    with answering(storage):
        system.create_dir(parent, recursive=True)
        with system.open_output_stream(marker) as stream:
            stream.write(b"sctune")
    remote = ray.remote(num_cpus=0)(_inspect_node)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    trains = [node["Resources"].get("CPU", 0) > 0 for node in nodes]
    try:
        calls = [
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                storage, marker, needs if runs else None
            )
            for node, runs in zip(nodes, trains, strict=True)
        ]
        answers: list[dict[str, Any]] = ray.get(calls, timeout=ANSWER_S)
    except ray.exceptions.RayError as problem:
        raise ClusterError(f"a node cannot run sctune: {str(problem).strip().splitlines()[-1]}") from None
    finally:
        system.delete_file(marker)
    for node, answer in zip(nodes, answers, strict=True):
        _compare(node["NodeManagerAddress"], answer, storage, versions)
    lacking = {
        node["NodeID"]: _line(node, answer) for node, answer in zip(nodes, answers, strict=True) if answer["lacks"]
    }
    if lacking and len(lacking) == sum(trains):
        raise ClusterError(f"no node can run trials: {'; '.join(sorted(set(lacking.values()))[:3])}")
    return {node: f"{line}; it is left out until the next launch" for node, line in lacking.items()}


def _compare(where: str, answer: Mapping[str, Any], storage: str, versions: Mapping[str, str]) -> None:
    if not answer["sees_storage"]:
        raise ClusterError(
            f"node {where} does not see {storage}; give --storage-path a folder or s3:// URI that all nodes share"
        )
    wrong = [
        f"{name} {answer['versions'].get(name)}"
        for name, own in versions.items()
        if answer["versions"].get(name) != own
    ]
    if wrong:
        raise ClusterError(f"node {where} has {', '.join(wrong)}, the driver {dict(versions)}; install the same")


def _line(node: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}): {answer['lacks']}"


def _inspect_node(storage: str, marker: str, needs: Needs | None) -> dict[str, Any]:
    from pyarrow import fs

    from sctune.trial.building import package_versions
    from sctune.trial.storage import open_storage

    system, _ = open_storage(storage)
    lacks = None
    try:
        if needs is not None:
            check_place(replace(needs, cache=str(cache_here(Path(needs.cache)))))
    except PlaceError as problem:
        lacks = str(problem)
    sees = system.get_file_info(marker).type == fs.FileType.File
    return {"sees_storage": sees, "versions": package_versions(), "lacks": lacks}
