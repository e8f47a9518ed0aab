"""What a node's machine has free, and at which addresses its Ray listens."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sctune.errors import ClusterError

SHARED_MEMORY = Path("/dev/shm")
GROUP = Path("/sys/fs/cgroup")
GPU_LIMIT_S = 60
"""Seconds that torch may take to start in a process of its own and say which GPUs it sees."""

_GPUS = """
import json, torch
found = [(torch.cuda.get_device_name(i), *torch.cuda.mem_get_info(i)) for i in range(torch.cuda.device_count())]
print(json.dumps(found))
"""

_SERVERS = ("gcs_server", "dashboard.py", "monitor.py", "ray.util.client.server")
"""What runs on the head only, by a word of its command."""


@dataclass(frozen=True)
class Gpu:
    """name; bytes of its memory that are free, and all."""

    name: str
    free: int
    total: int


@dataclass(frozen=True)
class Listener:
    """A port of Ray: what listens there, and at which of the node's addresses."""

    process: str
    host: str
    port: int


def memory(group: Path = GROUP) -> dict[str, Any]:
    """{"memory_total", "memory_free"}: bytes of the machine, or of the container that this runs in (its group)."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    limit, used = _group_memory(group)
    if limit is not None and limit < total:
        total, free = limit, min(free, limit - used)
    return {"memory_total": total, "memory_free": max(0, free)}


def _group_memory(folder: Path) -> tuple[int | None, int]:
    """Limit of this container and what it uses, without files that can be dropped; None where there is no limit."""
    try:
        limit = int((folder / "memory.max").read_text())
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return limit, int((folder / "memory.current").read_text()) - int(rows.get("inactive_file", 0))
    except (OSError, ValueError):  # no control groups of the second kind, or `max`
        return None, 0


def disk() -> dict[str, Any]:
    """{"temporary": folder, "temporary_free", "shared_memory"}: bytes; None where there is no shared memory."""
    temporary = _temporary_folder()
    shared = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None
    free = shutil.disk_usage(temporary).free
    return {"temporary": temporary, "temporary_free": free, "shared_memory": shared}


def _temporary_folder() -> str:
    """Where this node's Ray keeps logs and objects, from the raylet's own command."""
    try:
        words = "" if (raylet := _raylet()) is None else " ".join(raylet.cmdline())
    except psutil.Error:
        words = ""
    found = re.search(r"=(/\S*?)/session_", words)
    return found[1] if found is not None else tempfile.gettempdir()


def gpus() -> tuple[Gpu, ...]:
    """Those that torch sees. Raises ClusterError where it cannot start.

    In a process of its own, since Ray hides GPUs from workers that asked for none, and a context takes memory.
    """
    own = dict(os.environ)
    own.pop("CUDA_VISIBLE_DEVICES", None)
    given = _raylet_environment().get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        own["CUDA_VISIBLE_DEVICES"] = given
    try:
        told = subprocess.run(
            [sys.executable, "-c", _GPUS], env=own, capture_output=True, text=True, timeout=GPU_LIMIT_S, check=True
        ).stdout
    except subprocess.CalledProcessError as problem:
        raise ClusterError(f"torch cannot use the GPUs: {' '.join(problem.stderr.split())[-200:]}") from None
    return tuple(Gpu(*one) for one in json.loads(told.splitlines()[-1]))


def _raylet() -> Any:
    return psutil.Process().parent()


def _raylet_environment() -> dict[str, str]:
    try:
        raylet = _raylet()
        return {} if raylet is None else dict(raylet.environ())
    except psutil.Error:
        return {}


def asks_for_token() -> bool | None:
    """Whether this node's Ray was started with tokens; None where its environment cannot be read.

    This worker's own does not tell: sctune sets the mode where it is imported.
    """
    started_with = _raylet_environment()
    if not started_with:
        return None
    return started_with.get("RAY_AUTH_MODE", "disabled").lower() != "disabled"


def listeners(head: bool) -> list[Listener]:
    """Ports of this node's Ray: the raylet and all it started, and on the head what serves the whole cluster."""
    raylet = _raylet()
    if raylet is None:
        return []
    processes = [raylet, *raylet.children(recursive=True)]
    session = re.search(r"session_[\w-]+", " ".join(raylet.cmdline()))
    if head and session is not None:
        processes += [one for one in psutil.process_iter() if _serves(one, session[0])]
    found: set[tuple[str, str, int]] = set()
    for process in processes:
        try:
            name = _name(process)
            for one in process.net_connections(kind="tcp"):
                if one.status == psutil.CONN_LISTEN:
                    found.add((name, one.laddr.ip, one.laddr.port))
        except psutil.Error:  # it ended meanwhile, or is another user's
            continue
    return [Listener(*one) for one in sorted(found)]


def _serves(process: Any, session: str) -> bool:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return session in words and any(one in words for one in _SERVERS)


def _name(process: Any) -> str:
    words = " ".join(process.cmdline()[:3])
    server = next((one.removesuffix(".py") for one in _SERVERS if one in words), None)
    if server is not None:
        return server
    name = str(process.name())
    return "worker" if name.startswith("ray::") and not name.endswith("Agent") else name.removeprefix("ray::")
