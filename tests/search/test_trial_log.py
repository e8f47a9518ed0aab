"""The log files of trials: what happened to each, in order, whatever the launch."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from sctune.report import OBJECTIVE, EpochReport, Origin
from sctune.search.study import trial_log
from sctune.search.study.trial_log import TrialLog, trial_log_path
from sctune.trial.step_log import MAX_LINES, StepLog

PARAMS = {"augment.threshold": 0.4}


def result(epoch: int, where: str = "n1, process 7, cpu", log: tuple[str, ...] = ()) -> EpochReport:
    """As it comes from a worker, and as the recorder passes it on."""
    metrics = {OBJECTIVE: 0.5 + epoch / 10, "loss": 1.0, "seconds": 2.0}
    return EpochReport(epoch, 4, metrics, origin=Origin(where, "", log))


def lines(study: Path, number: int) -> list[str]:
    """Without the time."""
    return [line.partition(" ")[2] for line in trial_log_path(study, number).read_text().splitlines()]


def test_a_trial_is_told_from_start_to_end_over_two_launches(tmp_path: Path) -> None:
    with TrialLog(tmp_path, 1) as log:
        log.on_start(3, PARAMS, 1)
        log.on_report(3, result(1, log=("warning: slow disk",)), 0)
    with TrialLog(tmp_path, 2) as log:
        log.on_start(3, PARAMS, 2)
        log.on_report(3, result(2, "n2, process 8, cuda:0"), 0)
        log.on_end(3, "PRUNED", 0.7, {"stop_reason": "stopped by asha at epoch 2", "failure": None})
    assert lines(tmp_path, 3) == [
        "start: launch 1, attempt 1: augment.threshold=0.4",
        "runs on n1, process 7, cpu",
        "  warning: slow disk",
        f"epoch 1/4  {OBJECTIVE} 0.6000  loss 1  seconds 2",
        "unfinished when the launch ended; `sctune resume` goes on with it",
        "start: launch 2, attempt 2: augment.threshold=0.4",
        "runs on n2, process 8, cuda:0",
        f"epoch 2/4  {OBJECTIVE} 0.7000  loss 1  seconds 2",
        f"end: PRUNED, {OBJECTIVE} 0.7000 (stopped by asha at epoch 2)",
    ]


def test_a_failure_brings_its_whole_traceback_and_last_warnings(tmp_path: Path) -> None:
    failure = {"kind": "DataError", "message": "a.png", "traceback": "Traceback\n  line 1\nDataError: a.png"}
    failure |= {"where": "n1, process 7", "log": "warning: odd image"}
    with TrialLog(tmp_path, 1) as log:
        log.on_start(0, PARAMS, 1)
        # known with its device before, without it now: still the same process
        log.on_report(0, result(1), 0)
        log.on_end(0, "FAIL", None, {"stop_reason": "failed: DataError", "failure": failure})
    written = lines(tmp_path, 0)
    assert written[3:] == [
        "  warning: odd image",
        "end: FAIL (failed: DataError)",
        "DataError: a.png",
        "Traceback",
        "  line 1",
        "DataError: a.png",
    ]


def test_the_loss_of_a_worker_is_told(tmp_path: Path) -> None:
    lost = {"kind": "lost", "message": "its worker was lost", "traceback": ""}
    with TrialLog(tmp_path, 1) as log:
        log.on_start(0, PARAMS, 1)
        log.on_report(0, result(1), 0)
        log.on_report(0, result(2, "n2, process 9, cpu"), 0)
        log.on_end(0, "FAIL", None, {"stop_reason": "failed: lost", "failure": lost})
    written = lines(tmp_path, 0)
    assert written[3] == "worker lost: it ran on n1, process 7; goes on at n2, process 9, cpu from the last checkpoint"
    assert written[5] == "worker lost: it ran on n2, process 9"


def test_a_file_is_bounded_and_still_tells_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_log, "MAX_BYTES", 2000)
    with TrialLog(tmp_path, 1) as log:
        log.on_start(0, PARAMS, 1)
        for epoch in range(1, 1000):
            log.on_report(0, result(1 + epoch % 4, log=("warning: again",)), 0)
        log.on_end(0, "COMPLETE", 0.9, {"stop_reason": "all epochs done", "failure": None})
    written = lines(tmp_path, 0)
    assert trial_log_path(tmp_path, 0).stat().st_size < 3000
    assert written[-2:] == [
        "the file is full; only the end follows",
        f"end: COMPLETE, {OBJECTIVE} 0.9000 (all epochs done)",
    ]


def test_a_disk_that_takes_nothing_does_not_end_the_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("no folder")
    with TrialLog(tmp_path, 1) as log:
        for number in range(5):
            log.on_start(number, PARAMS, 1)
    assert len([record for record in caplog.records if "cannot write the log" in record.message]) == 1


def test_a_worker_collects_warnings_of_a_step() -> None:
    # another test of this process may have left it on
    logging.captureWarnings(False)
    log = StepLog.attach()
    again = StepLog.attach()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("a library\nsays so", stacklevel=1)
    logging.getLogger("sctune.trial").warning("going on from %s", "an earlier one")
    logging.getLogger("sctune.trial").info("not this")
    assert log.take() == []  # replaced, so that nothing is told twice
    first, second = again.take()
    assert "a library says so" in first
    assert second == "warning: going on from an earlier one"
    for number in range(2 * MAX_LINES):
        logging.getLogger("sctune").warning("%d", number)
    assert again.take()[0] == f"warning: {MAX_LINES}"
    assert again.take() == []
    for name in ("sctune", "py.warnings"):
        logging.getLogger(name).removeHandler(again)
    logging.captureWarnings(False)
