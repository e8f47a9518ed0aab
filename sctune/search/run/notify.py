"""Telling somebody how a launch ended: a command that gets a JSON document on stdin, or an http(s) URL that gets it.

A hook may hold a secret (a token in a URL), so it is never stored and never named in a message.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from sctune.errors import ConfigError

VARIABLE = "SCTUNE_NOTIFY"
LIMIT_S = 30.0
URL_LIMIT_S = 10.0
STOPPED_LIMIT_S = 3.0
"""A stopped driver leaves within 10 s: a slower command is left to itself then."""

_log = logging.getLogger(__name__)


def read_hooks(given: Sequence[str]) -> tuple[str, ...]:
    """The hooks of the command line and, a line each, of SCTUNE_NOTIFY, which is taken out of the environment.

    Taken out so that no worker inherits it. Raises ConfigError for an empty one and for a URL of another kind.
    """
    hooks = (*given, *(line for line in os.environ.pop(VARIABLE, "").splitlines() if line.strip()))
    for hook in hooks:
        scheme = hook.partition("://")[0].lower()
        if not hook.strip() or ("://" in hook and scheme.isalpha() and not is_url(hook)):
            shown = f"{scheme}://..." if hook.strip() else repr(hook)
            raise ConfigError(f"--notify {shown}: give a command, or a URL with http:// or https://")
        if "\n" in hook:
            raise ConfigError("--notify: a command of several lines; put them into a script and give its path")
        if is_url(hook) and not urlsplit(hook).hostname:
            raise ConfigError(f"--notify {hook.partition('://')[0]}://: the URL names no host")
    return hooks


def is_url(hook: str) -> bool:
    return hook.lower().startswith(("http://", "https://"))


def notify(hooks: Sequence[str], document: Mapping[str, Any]) -> list[str]:
    """Call all hooks at the same time and wait, 30 s at most (3 s for a stopped study); gives a line per trouble.

    document: JSON values, with `study` and `state`. Never raises.
    """
    stopped = document["state"] == "stopped"
    limit = STOPPED_LIMIT_S if stopped else LIMIT_S
    troubles: list[str] = []
    threads = []
    for number, hook in enumerate(hooks, 1):
        name = f"notification {number} ({urlsplit(hook).hostname if is_url(hook) else 'command'})"
        work = (hook, document, limit, stopped, name, troubles)
        threads.append(Thread(target=_call, args=work, daemon=True, name="sctune-notify"))
        threads[-1].start()
    for thread in threads:
        # one that hangs in the name service is left behind
        thread.join(limit + 1)
    unanswered = [thread for thread in threads if thread.is_alive()]
    if unanswered:
        troubles.append(f"{len(unanswered)} notifications were not taken within {limit:g} s")
    for line in troubles:
        _log.warning("%s", line)
    return troubles


def _call(hook: str, document: Mapping[str, Any], limit: float, leave: bool, name: str, troubles: list[str]) -> None:
    try:
        trouble = _post(hook, document, limit) if is_url(hook) else _run(hook, document, limit, leave)
    except Exception as problem:  # its text may hold the hook
        trouble = type(problem).__name__
    if trouble is not None:
        troubles.append(f"{name}: {trouble}")


def _post(url: str, document: Mapping[str, Any], limit: float) -> str | None:
    import requests

    answer = requests.post(url, json=dict(document), timeout=min(limit, URL_LIMIT_S))
    return None if answer.ok else f"the server answered {answer.status_code}"


def _run(command: str, document: Mapping[str, Any], limit: float, leave: bool) -> str | None:
    environment = {**os.environ, "SCTUNE_STUDY": str(document["study"]), "SCTUNE_STATE": str(document["state"])}
    # a file and not a pipe: it can be read however long the command takes to do so
    with tempfile.TemporaryFile() as content:
        content.write(json.dumps(document).encode())
        content.seek(0)
        process = subprocess.Popen(
            command,
            shell=True,
            stdin=content,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        if leave:
            return f"still runs after {limit:g} s, and was left to itself"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"was ended after {limit:g} s"
    return None if code == 0 else f"ended with exit code {code}"
