"""`--detach`: the same command in a session of its own, which outlives the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from sctune.errors import StudyError
from sctune.search.run.session import DETACHED
from sctune.search.study.driver import Driver, running_driver
from sctune.search.study.study import Study

POLL_S = 0.2

Say = Callable[[list[str]], None]


def detach(words: Sequence[str], root: Path, name: str, environment: Mapping[str, str], say: Say) -> Driver | int:
    """Run `sctune WORDS` in the background and wait until it drives study `name`, or has ended (its exit code).

    What it says until then (its plan, or why it cannot start) is passed on to `say`.
    """
    with tempfile.TemporaryFile() as console:
        child = subprocess.Popen(
            [sys.executable, "-m", "sctune", *words],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env={**environment, DETACHED: "1"},
            start_new_session=True,
        )
        said = 0
        try:
            while True:
                code = child.poll()
                driver = None if code is not None else driver_of(root, name, "pid", child.pid)
                said = _pass_on(console, said, say)
                if code is not None:
                    return code
                if driver is not None:
                    return driver
                time.sleep(POLL_S)
        except BaseException:
            # Ctrl-C before the study is there: nothing may go on unseen
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()
            raise


def driver_of(root: Path, name: str, key: str, value: Any) -> Driver | None:
    """The driver of a study where it is the one with this fact; None while there is no such study or driver."""
    try:
        driver = running_driver(Study.open(root, name))
    except StudyError:
        return None
    return driver if driver is not None and driver.facts.get(key) == value else None


def _pass_on(console: IO[bytes], said: int, say: Say) -> int:
    """Say the whole lines written since `said`; gives how far it came. The writer's own position must not move."""
    text = os.pread(console.fileno(), 1 << 20, said)
    whole = text[: text.rfind(b"\n") + 1]
    if whole:
        say(whole.decode(errors="replace").splitlines())
    return said + len(whole)
