"""Looking after a study that another process drives: whether it runs, and asking it to stop."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from sctune.errors import StudyError
from sctune.search.study.database import DRIVER_ATTR, read_attrs, write_attrs
from sctune.search.study.lock import is_free
from sctune.search.study.manifest import Launch
from sctune.search.study.process import FORMAT_VERSION, driver_facts, is_running_here
from sctune.search.study.study import DRIVER, Study, write_json

STOP = "stop"
"""File in the study's folder, and study attribute in the record, that asks the driver named in it to stop."""
STOP_ATTRIBUTE = "sctune:stop"
POLL_S = 1.0
RECORD_POLL_S = 3.0
STOP_WAIT_S = 60.0
_log = logging.getLogger(__name__)
_IDENTITY = ("host", "pid", "process_started")


@dataclass(frozen=True)
class Driver:
    """The process that drives a study now. since: ISO 8601 in UTC; job: Ray job id; here: on this host."""

    pid: int
    host: str
    since: str | None
    job: str | None
    here: bool
    facts: Mapping[str, Any]

    @property
    def text(self) -> str:
        job = f", Ray job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"

    def to_dict(self) -> dict[str, Any]:
        return {"pid": self.pid, "host": self.host, "since": self.since, "job": self.job}


def running_driver(study: Study) -> Driver | None:
    """The driver that holds the study at this moment, None where nobody does (ended, or killed).

    Raises StudyError for a driver.json of a newer sctune.
    """
    facts = study.driver()
    if study.storage is not None:
        # the driver may run where the study has another folder
        facts = read_attrs(study.storage, study.name).get(DRIVER_ATTR) or facts
    if facts is None:
        return None
    version = facts.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        path = study.folder / DRIVER
        raise StudyError(f"{path} has format_version {version!r}, this sctune reads {FORMAT_VERSION}; update sctune")
    here = is_running_here(facts)
    # a shared record keeps the facts of the last driver when it has ended
    unsure = not here or study.storage is not None
    if unsure and is_free(study.folder / "driver.lock", study.storage, study.name, study.manifest.study_id):
        return None
    return Driver(int(facts["pid"]), str(facts["host"]), facts.get("since"), facts.get("job"), here, facts)


@dataclass(frozen=True)
class Launches:
    """The launches of a study, and the driver of the one that runs; whose it is, and what was noted."""

    launches: tuple[Launch, ...]
    driver: Driver | None
    owner: str | None = None
    notes: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "driver": self.driver.to_dict() if self.driver else None,
            "launches": [launch.model_dump() for launch in self.launches],
            "owner": self.owner,
            "notes": self.notes,
        }

    def whose(self) -> list[str]:
        """Owner and notes in a line each, where there are any."""
        found = {"owner": self.owner, "notes": self.notes}
        return [f"{what}: {' '.join(text.split())}" for what, text in found.items() if text]

    def lines(self) -> list[str]:
        if self.driver is not None:
            since = f" since {self.driver.since}" if self.driver.since else ""
            now = [f"running: launch {len(self.launches)}, {self.driver.text}{since}"]
            return [*now, *(line for launch in self.launches[-1:] for line in launch.left_out)]
        if not self.launches:
            return ["not running; never started"]
        last = self.launches[-1]
        end = f"{last.reason} at {last.ended}" if last.ended else f"killed (begun at {last.started})"
        return [f"not running; launch {len(self.launches)}: {end}", *last.left_out]


def study_launches(root: Path, name: str, storage: str | None = None) -> Launches:
    """storage: URL of the record, where no folder of the study is here."""
    study = Study.open(root, name, storage)
    driver = running_driver(study)
    # read after the driver, which ends its launch before it lets go
    manifest = Study.open(root, name, storage).manifest
    return Launches(manifest.launches, driver, manifest.owner, manifest.notes)


def stop(study: Study, wait_s: float = STOP_WAIT_S) -> tuple[Driver, str]:
    """Ask the running driver to stop cleanly, and wait until it has let go of the study; gives how its launch ended.

    Raises StudyError when the study is not running, or the driver has not ended within `wait_s` seconds.
    """
    driver = running_driver(study)
    over = tuple(one for one in study.manifest.launches[-1:] if one.ended)
    if driver is None:
        raise StudyError(f"study {study.name!r} is not running; see `sctune status {study.name}`")
    if driver.here:
        with suppress(ProcessLookupError):
            os.kill(driver.pid, signal.SIGTERM)
    else:
        _ask(study, driver)
    end = time.monotonic() + wait_s
    while _still(study, driver):
        if time.monotonic() > end:
            raise StudyError(
                f"the driver of {study.name!r} ({driver.text}) was asked to stop and has not ended within {wait_s:g} s"
                f"; look at `sctune logs {study.name}`, ask again, or end that process"
            )
        time.sleep(0.2 if driver.here else 1.0)
    launches = Study.open(study.folder.parent, study.name, study.storage).manifest.launches
    # one that was still starting had no launch to end, nor has a confirmation's that trained its final form; one that
    # was just finishing is done
    beside = study.manifest.confirms is not None and launches[-1:] == over
    return driver, (launches[-1].reason if launches and not beside else None) or "stopped"


@contextmanager
def stop_requests(study: Study) -> Iterator[None]:
    """In the driver: while inside, `sctune stop` from another host does what SIGTERM does."""
    ended = Event()
    watcher = Thread(target=_watch, args=(study, driver_facts(), ended), daemon=True, name="sctune-stop")
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(2)


def _still(study: Study, driver: Driver) -> bool:
    if driver.here:
        return is_running_here(driver.facts)
    now = running_driver(study)
    return now is not None and _same(now.facts, driver.facts)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in _IDENTITY)


def _ask(study: Study, driver: Driver) -> None:
    """Leave the request where the driver looks: in the study's folder, and in a database that both reach."""
    request = {"format_version": FORMAT_VERSION, **{key: driver.facts.get(key) for key in _IDENTITY}}
    if study.is_here:
        write_json(study.folder / STOP, request)
    if study.storage is not None:
        write_attrs(study.storage, study.name, {STOP_ATTRIBUTE: request}, 5.0)


def _watch(study: Study, me: Mapping[str, Any], ended: Event) -> None:
    path, looked = study.folder / STOP, time.monotonic()
    while not ended.is_set():
        request = _read(path)
        if request is None and study.storage is not None and time.monotonic() - looked > RECORD_POLL_S:
            looked = time.monotonic()
            with suppress(StudyError):  # a database that is away is asked again later
                request = read_attrs(study.storage, study.name).get(STOP_ATTRIBUTE)
        if request is not None and _same(request, me):
            _log.warning("stop asked for by `sctune stop`")
            os.kill(os.getpid(), signal.SIGTERM)
            break
        ended.wait(POLL_S)
    # answered, or meant for an earlier driver
    path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
