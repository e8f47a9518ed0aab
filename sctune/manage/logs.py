"""Reading the log files of a study, and following them while it runs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from sctune.errors import StudyError
from sctune.search.run.session import DRIVER_LOG
from sctune.search.study.driver import running_driver
from sctune.search.study.study import Study
from sctune.search.study.trial_log import LOGS, trial_log_path

FOLLOW_S = 0.5
CHECK_S = 2.0


def log_path(study: Study, trial: int | None) -> Path:
    """The log file of a trial, or of the launches (None); StudyError where that trial has none."""
    if trial is None:
        path = study.folder / LOGS / DRIVER_LOG
        if not path.is_file():
            raise StudyError(f"study {study.name!r} has no log yet; `sctune resume {study.name}` starts it")
        return path
    path = trial_log_path(study.folder, trial)
    if not path.is_file():
        known = sorted(logged_trials(study))
        has = f"logs are there for {_ranges(known)}" if known else "none has a log yet"
        raise StudyError(f"study {study.name!r} has no log of trial {trial}; {has}")
    return path


def logged_trials(study: Study) -> list[int]:
    """Numbers of the trials that have a log file."""
    names = (re.fullmatch(r"trial-(\d+)\.log", path.name) for path in (study.folder / LOGS).glob("trial-*.log"))
    return sorted(int(match[1]) for match in names if match)


def log_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            yield line.rstrip("\n")


def follow(study: Study, path: Path) -> Iterator[str]:
    """The lines of a log file, and then each new one, until nobody runs the study any more."""
    offset, checked, running, rest = 0, 0.0, True, ""
    while running:
        if time.monotonic() - checked >= CHECK_S:
            # asked before the file is read, so that the last lines are not missed
            running, checked = running_driver(study) is not None, time.monotonic()
        if path.exists() and path.stat().st_size < offset:
            offset = 0  # a full driver.log was put aside
        with path.open(encoding="utf-8", errors="replace") as stream:
            stream.seek(offset)
            text = rest + stream.read()
            offset = stream.tell()
        *lines, rest = text.split("\n")
        yield from lines
        if running:
            time.sleep(FOLLOW_S)
    if rest:
        yield rest


def _ranges(numbers: list[int]) -> str:
    """0 to 4, 7 and the like."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    shown = [f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    return "trial " + ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")
