"""`--detach --address`: the driver as a job of the Ray cluster, which runs on when this machine is switched off.

What is handed to a job can be read in Ray's dashboard and session folder, so nothing secret goes with it: the
cluster's own environment holds the credentials.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sctune.errors import ClusterError
from sctune.manage.detach import Say, driver_of
from sctune.search.cluster.connection import check_answers, use_token
from sctune.search.run.session import RUNS_AS_JOB
from sctune.search.study.driver import Driver

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

POLL_S = 1.0
AGENTS_S = 60.0
"""Seconds that the agents of a cluster's nodes may take to join after its start."""
ALONE_S = 30.0
"""Seconds that a running job's study may take to show up here, once the job has said that it drives it."""


def submit(words: Sequence[str], address: str, root: Path, name: str, say: Say) -> Driver | str | int:
    """Submit `sctune WORDS` and wait until it drives study `name`; gives its exit code where it has ended instead.

    The job's id where it runs and its study root is not seen from here. Raises ClusterError with the way out when
    the cluster, its dashboard or `ray[default]` is missing.
    """
    client = connect_jobs(address)
    job = f"sctune-{name}-{uuid.uuid4().hex[:6]}"
    _asked(address, lambda: _submit(client, entrypoint(words), job))
    say([f"Ray job {job} is submitted"])
    spoken: float | None = None
    while True:
        status = str(_asked(address, lambda: client.get_job_status(job)))
        driver = driver_of(root, name, "job", job)
        if driver is not None:
            return driver
        if status in ("SUCCEEDED", "FAILED", "STOPPED"):
            return _ended(client, address, job, say)
        if spoken is None and RUNS_AS_JOB in str(_asked(address, lambda: client.get_job_logs(job))):
            spoken = time.monotonic()
        if spoken is not None and time.monotonic() - spoken > ALONE_S:
            return job
        time.sleep(POLL_S)


def _submit(client: JobSubmissionClient, command: str, job: str) -> None:
    """A head that has just started takes jobs only when its agents have joined, and says so until then."""
    end = time.monotonic() + AGENTS_S
    while True:
        try:
            client.submit_job(entrypoint=command, submission_id=job)
            return
        except RuntimeError as problem:
            if "No available agent" not in str(problem) or time.monotonic() > end:
                raise
        time.sleep(POLL_S)


def entrypoint(words: Sequence[str]) -> str:
    """The shell command of the job: this Python where the head has it too, else the one on its PATH."""
    python = shlex.quote(sys.executable)
    return f'exec "$(command -v {python} || echo python3)" -m sctune {shlex.join(words)}'


def connect_jobs(address: str) -> JobSubmissionClient:
    """A client of the cluster's job server; address: host:port, auto, or http://head:8265 itself."""
    use_token()
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        from ray.dashboard.utils import ray_address_to_api_server_url
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise ClusterError(
            "--detach with --address hands the search to Ray's job server, whose client is not installed here; "
            "install sctune[cluster], or leave out --address"
        ) from None
    if not address.startswith(("http://", "https://")):
        check_answers(address)
    try:
        url = address if "://" in address else ray_address_to_api_server_url(address)
        return JobSubmissionClient(url)
    except Exception as problem:  # Ray raises what it pleases, a bare AssertionError too
        raise _unreachable(address, problem) from None


def _asked(address: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as problem:
        raise _unreachable(address, problem) from None


def _unreachable(address: str, problem: BaseException) -> ClusterError:
    reason = " ".join(str(problem).split())[:200].rstrip(".") or type(problem).__name__
    if "token" in reason.lower():
        return ClusterError(
            f"Ray's job server of {address} does not take this user's token; copy the head's token file here "
            "(~/.ray/auth_token, or name it in RAY_AUTH_TOKEN_PATH)"
        )
    return ClusterError(
        f"Ray's job server of {address} cannot be used: {reason}; start the head with the extra sctune[cluster] "
        "installed and `ray start --head --include-dashboard=true`, or leave out --detach"
    )


def _ended(client: JobSubmissionClient, address: str, job: str, say: Say) -> int:
    """Pass on what the job said; gives its exit code."""
    say(str(_asked(address, lambda: client.get_job_logs(job))).splitlines()[-20:])
    info = _asked(address, lambda: client.get_job_info(job))
    if info.driver_exit_code is None:
        say([f"Ray job {job}: {info.message}"])
        return 1
    return int(info.driver_exit_code)
