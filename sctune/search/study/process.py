"""Who drives a study: what a driver says of itself, and whether a process is still that one."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def driver_facts() -> dict[str, Any]:
    """What this process writes about itself while it holds a study; job: its id where it is a Ray job."""
    return {
        "format_version": FORMAT_VERSION,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "process_started": process_start(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "job": job_id(),
    }


def is_running_here(facts: Mapping[str, Any]) -> bool:
    """Whether the process of these facts lives on this host: the same id is not enough, ids are used again."""
    started = process_start(int(facts["pid"]))
    return facts["host"] == socket.gethostname() and started is not None and started == facts.get("process_started")


def process_start(pid: int) -> str | None:
    """When a process of this host was started, in the system's own words; None where there is none (or a dead one)."""
    try:
        # after the name, which may hold anything: state is field 3, the start in ticks since boot field 22
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return None
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def this_user() -> str:
    """Who runs this process, as user@host; the number of the user where it has no name here."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def job_id() -> str | None:
    """Id of the Ray job that this process is the entry point of."""
    try:
        return str(json.loads(os.environ[_JOB_VARIABLE])["metadata"]["job_submission_id"])
    except (KeyError, TypeError, ValueError):
        return None
