"""Whether the cluster asks for a token, tried out from the driver: by a process that has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.request import ProxyHandler, build_opener

from sctune.search.cluster.connection import CONNECT_S
from sctune.search.cluster.findings import PORTS, TOKEN, Effect, Finding, failed, ok, skipped
from sctune.search.cluster.judge import TOKEN_ADVICE
from sctune.trial.ray_private import dashboard_address

REFUSED = 3
_STRANGER = f"""
import sys
from sctune.trial.ray_private import ask_head
from ray.exceptions import AuthenticationError
try:
    ask_head(sys.argv[1], {CONNECT_S})
except AuthenticationError:
    sys.exit({REFUSED})
"""


@contextmanager
def token_asked() -> Iterator[Callable[[], bool | None]]:
    """A stranger asks Ray's head while the block runs; the function waits for it.

    Gives whether a token was asked for, None where that could not be found out.
    """
    import ray

    head = ray.get_runtime_context().gcs_address
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_TOKEN")}
    # the mode is read once by a process, so it has to be another one
    process = subprocess.Popen(
        [sys.executable, "-c", _STRANGER, head],
        env={**own, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answer() -> bool | None:
        try:
            code = process.wait(3 * CONNECT_S)
        except subprocess.TimeoutExpired:
            return None
        return {0: False, REFUSED: True}.get(code)

    try:
        yield answer
    finally:
        process.kill()
        process.wait()


def cluster_findings(token: bool | None) -> list[Finding]:
    """About Ray's head, and the dashboard where there is one; token: whether the head asks for it."""
    page = dashboard_address()
    found = []
    if page is not None and _open_page(page):
        detail = f"the dashboard at {page} answers without a token"
        found.append(failed(PORTS, detail, TOKEN_ADVICE, Effect.REFUSE))
    if token is False:
        # a driver that has one can run nothing there, so that the nodes cannot say it themselves
        return [failed(TOKEN, "Ray's head answers without a token", TOKEN_ADVICE, Effect.REFUSE), *found]
    if token is None:
        return [skipped(TOKEN, "could not be tried out"), *found]
    return [ok(TOKEN, "the head refuses who has none"), *found]


def _open_page(address: str) -> bool:
    """Whether the dashboard says of itself that it asks for no token; False where it is not reached from here."""
    try:
        # a proxy of the environment leads elsewhere
        direct = build_opener(ProxyHandler({}))
        with direct.open(f"http://{address}/api/authentication_mode", timeout=CONNECT_S) as answer:
            return bool(json.loads(answer.read()).get("authentication_mode") == "disabled")
    except (OSError, ValueError, AttributeError):
        return False
