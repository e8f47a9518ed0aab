"""Around a launch: the study's own log, the console of a detached driver, and the notification at its end."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from sctune.errors import AllTrialsFailedError, EndedAtOnceError, SctuneError
from sctune.search.run.notify import notify
from sctune.search.study.leaderboard import best_row, leaderboard
from sctune.search.study.process import job_id
from sctune.search.study.record import Record
from sctune.search.study.references import read_references
from sctune.search.study.result import StudyResult
from sctune.search.study.study import Study
from sctune.search.study.trial_log import LOGS

if TYPE_CHECKING:
    from sctune.search.run.launch import RunningLaunch

DRIVER_LOG = "driver.log"
CONSOLE_LOG = "console.log"
DETACHED = "SCTUNE_DETACHED"
"""Set in the environment of a driver that `--detach` started: its output goes to the study's folder."""
RUNS_AS_JOB = "runs as Ray job"
MAX_BYTES = 5 << 20
"""Of driver.log; one older file of this size is kept beside it."""

_log = logging.getLogger(__name__)


def run_launch(launch: RunningLaunch, hooks: Sequence[str] = ()) -> StudyResult:
    """Run a launch with its log and console; hooks (see `notify`) are told how it ended, whatever happened."""
    study = launch.study
    take_console(study)
    if job_id():
        print(f"study {study.name} {RUNS_AS_JOB} {job_id()}", file=sys.stderr, flush=True)
    with driver_log(study):
        try:
            result = launch.run()
        except KeyboardInterrupt as problem:
            _notify(study, hooks, *_failed(problem))
            raise EndedAtOnceError(
                f"{study.name} was ended at once by a second signal; go on with `sctune resume {study.name}`"
            ) from None
        except BaseException as problem:
            _notify(study, hooks, *_failed(problem))
            raise
        state = "done" if result.way_on is None else "stopped"
        message = result.way_on or "done"
        _log.info("the launch ended: %s", message)
        _notify(study, hooks, state, message, result)
        return result


@contextmanager
def driver_log(study: Study) -> Iterator[None]:
    """While inside, what sctune and Python's `warnings` log in this process goes to logs/driver.log as well."""
    folder = study.folder / LOGS
    folder.mkdir(mode=0o700, exist_ok=True)
    file = RotatingFileHandler(folder / DRIVER_LOG, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8", delay=True)
    file.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
    # a thread of its own writes: the driver never waits for the disk
    listener = QueueListener(SimpleQueue(), file)
    handler = QueueHandler(listener.queue)
    ours, warned = logging.getLogger("sctune"), logging.getLogger("py.warnings")
    # a handler of ours would end the printing of warnings that Python does where there is none
    shown = None if ours.hasHandlers() or logging.lastResort is None else logging.lastResort
    level = ours.level
    logging.captureWarnings(True)
    ours.setLevel(logging.INFO)
    for logger in (ours, warned):
        logger.addHandler(handler)
        if shown is not None:
            logger.addHandler(shown)
    listener.start()
    try:
        job = f", Ray job {job_id()}" if job_id() else ""
        number = len(study.manifest.launches) + 1
        _log.info("launch %d of %s: process %d on %s%s", number, study.name, os.getpid(), socket.gethostname(), job)
        yield
    finally:
        for logger in (ours, warned):
            logger.removeHandler(handler)
            if shown is not None:
                logger.removeHandler(shown)
        ours.setLevel(level)
        logging.captureWarnings(False)
        listener.stop()
        file.close()


def take_console(study: Study) -> None:
    """A detached driver's output goes to logs/console.log from here on; nothing for any other."""
    if os.environ.pop(DETACHED, None) is None:
        return
    path = study.folder / LOGS / CONSOLE_LOG
    path.parent.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(handle, stream.fileno())
    os.close(handle)


class _Lines(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 (logging's name)
        return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _failed(problem: BaseException) -> tuple[str, str]:
    """State and message of a launch that ended by an error, which is written to the study's log."""
    if isinstance(problem, KeyboardInterrupt | SystemExit):
        state, message = "stopped", "ended at once by a second signal; its trials go on with `sctune resume`"
    elif isinstance(problem, SctuneError):
        state = "all-failed" if isinstance(problem, AllTrialsFailedError) else "failed"
        message = str(problem)
    else:
        state, message = "crashed", f"{type(problem).__name__}: {' '.join(str(problem).split())[:500]}"
    _log_quietly(f"the launch ended: {state}: {message}", problem if state == "crashed" else None)
    return state, message


def _log_quietly(message: str, problem: BaseException | None) -> None:
    """Into the file only: the command says the same on its way out, and Python a bug's traceback."""
    info = None if problem is None else (type(problem), problem, problem.__traceback__)
    record = logging.LogRecord(_log.name, logging.ERROR, __file__, 0, "%s", (message,), info)
    for handler in logging.getLogger("sctune").handlers:
        if isinstance(handler, QueueHandler):
            handler.handle(record)


def _notify(study: Study, hooks: Sequence[str], state: str, message: str, result: StudyResult | None = None) -> None:
    """result: of a launch that ran to an end of its own; it knows whether the best trial beats the references."""
    if not hooks:
        return
    document = {
        "format_version": 1,
        "study": study.name,
        "state": state,
        "message": message,
        "folder": str(study.folder),
        "host": socket.gethostname(),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "launches": len(study.manifest.launches),
        "trials": study.manifest.trials,
        **_counts(study),
        "verdict": None if result is None else result.verdict,
    }
    notify(hooks, document)


def _counts(study: Study) -> dict[str, Any]:
    """{"counts": state -> trials, and the best full run}, from the record; empty where it cannot be read."""
    try:
        record = Record(study.record_url, study.name)
        try:
            trials = record.load()
            references = read_references(study.manifest, record.load_references())
        finally:
            record.close()
    except Exception:  # the database may be what ended the launch
        return {"counts": {}}
    best = best_row(leaderboard(trials, study.objective), study.objective)
    return {
        "counts": dict(Counter(trial.state.name for trial in trials)),
        "best_trial": best.number if best else None,
        "best_value": best.value if best else None,
        "best_params": best.params if best else None,
        "references": {one.name: one.value for one in references},
        **study.objective.stated,
    }
