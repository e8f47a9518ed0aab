"""What a node says of itself when it is asked; what is good and bad about it is decided elsewhere (`judge`).

Runs on the node. Every part has a thread of its own and all have one time limit, so that a mount that hangs is named
and the rest is told all the same.
"""

from __future__ import annotations

import platform
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sctune.backbones.registry import backbone_entry
from sctune.data.digests import data_digest
from sctune.errors import PlaceError, SctuneError
from sctune.files import file_sha256
from sctune.paths import cache_here
from sctune.search.cluster.machine import Gpu, Listener, asks_for_token, disk, gpus, listeners, memory
from sctune.search.cluster.wanted import FileSet, Question, Wanted, Weights
from sctune.trial.ray_private import dashboard_address
from sctune.trial.versions import package_versions


@dataclass(frozen=True)
class NodeFacts:
    """As a node told them; None: not asked, or not to be had. Sizes are bytes.

    lacks: one line for what trials cannot have there (images, room for them), with the way out. digests: of the sets
    of images, in the order of the question; None for one that is not there and comes from the driver. weights:
    backbone -> SHA-256, None where there is no file. storage_read: whether it read what the driver had written;
    storage_problem: why it could not write there itself. token: whether the node's own Ray asks for one. page:
    HOST:PORT of the cluster's dashboard. problems: part -> one line for what hung or failed altogether.
    """

    versions: Mapping[str, str] = field(default_factory=dict)
    lacks: str | None = None
    cache_free: int | None = None
    digests: tuple[str | None, ...] | None = None
    weights: Mapping[str, str | None] = field(default_factory=dict)
    storage_read: bool = False
    storage_problem: str | None = None
    gpus: tuple[Gpu, ...] | None = None
    memory_free: int | None = None
    memory_total: int | None = None
    temporary: str = ""
    temporary_free: int | None = None
    shared_memory: int | None = None
    token: bool | None = None
    listeners: tuple[Listener, ...] = ()
    page: str | None = None
    problems: Mapping[str, str] = field(default_factory=dict)


def all_versions() -> dict[str, str]:
    """Versions that must be the same everywhere: of Python, Ray, and the packages that trials compare."""
    import ray

    return {"python": platform.python_version(), "ray": ray.__version__, **package_versions()}


class NodeProbe:
    """Answers on a node, in a worker of its own."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted

    def facts(self, question: Question) -> NodeFacts:
        return gather(self._wanted, question)

    def now(self) -> float:
        """Seconds since 1970 by this node's clock."""
        return time.time()


def gather(wanted: Wanted, question: Question) -> NodeFacts:
    """All that can be told within the time limit; what failed or hung is in `problems`."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "versions": lambda: {"versions": all_versions()},
        "memory": memory,
        "disk": disk,
        "ports": lambda: {
            "token": asks_for_token(),
            "listeners": tuple(listeners(question.head)),
            "page": dashboard_address(),
        },
    }
    if question.marker:
        parts["storage"] = lambda: _storage(wanted.storage, question)
    if question.trains:
        parts["data"] = lambda: _data(wanted)
        parts["weights"] = lambda: {"weights": {name: _weights(name, one) for name, one in wanted.weights.items()}}
    if question.gpus:
        parts["GPUs"] = lambda: {"gpus": gpus()}
    found, problems = _in_time(parts, question.limit_s)
    return NodeFacts(**found, problems=problems)


def _in_time(
    parts: Mapping[str, Callable[[], dict[str, Any]]], limit_s: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the parts gave, and part -> line for those that failed or took longer, whose threads are left behind."""
    found: dict[str, dict[str, Any]] = {}
    problems: dict[str, str] = {}

    def run(name: str, part: Callable[[], dict[str, Any]]) -> None:
        try:
            found[name] = part()
        except SctuneError as problem:
            problems[name] = str(problem)
        except Exception as problem:
            problems[name] = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"

    threads = {name: threading.Thread(target=run, args=(name, part), daemon=True) for name, part in parts.items()}
    end = time.monotonic() + limit_s
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(max(0.0, end - time.monotonic()))
    for name in parts:
        if name not in found and name not in problems:
            problems[name] = f"no answer within {limit_s:.0f} s"
    told = {key: value for name in list(found) for key, value in found[name].items()}
    return told, dict(problems)


def _data(wanted: Wanted) -> dict[str, Any]:
    """The images: a few of them and room for all first, since that is told at once; then what they hold."""
    if wanted.needs is None:
        return {}
    # decoders and arrays: a node without images needs none of them
    from sctune.data.place import check_place

    cache = cache_here(Path(wanted.needs.cache))
    needs = replace(wanted.needs, cache=str(cache), samples=() if wanted.published else wanted.needs.samples)
    try:
        check_place(needs)
        digests = tuple(_digest(one, cache, wanted.published) for one in wanted.data)
    except SctuneError as problem:
        return {"lacks": str(problem)}
    return {"digests": digests, "cache_free": shutil.disk_usage(cache).free}


def _digest(images: FileSet, cache: Path, published: bool) -> str | None:
    try:
        return data_digest(Path(images.root), images.paths, cache)
    except PlaceError:
        if published:
            return None
        raise


def _weights(backbone: str, wanted: Weights) -> str | None:
    source = backbone_entry(backbone).weights
    path = Path(wanted.file) if wanted.file is not None else source.local(backbone) if source is not None else None
    return file_sha256(path) if path is not None and path.is_file() else None


def _storage(storage: str, question: Question) -> dict[str, Any]:
    """Read what the driver wrote, and write what it will read."""
    from sctune.trial.storage import open_storage, reason

    system, _ = open_storage(storage)
    try:
        with system.open_input_stream(question.marker) as stream:
            read = stream.readall() == question.content
    except FileNotFoundError:
        return {}
    try:
        with system.open_output_stream(question.answer) as stream:
            stream.write(question.content)
    except OSError as problem:
        return {"storage_read": read, "storage_problem": reason(problem)}
    return {"storage_read": read}
