"""The record's writer: a prefix of the events whatever ends the process, batches that bear a repetition, no waiting."""

from __future__ import annotations

import datetime
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from sctune.errors import StudyError
from sctune.report import OBJECTIVE
from sctune.search import record_rows
from sctune.search.database import close_database, open_database
from sctune.search.record import AfterRecord, Record, reports_of
from sctune.search.record_rows import Batch

EPOCHS = 4

WRITER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("writer", sys.argv[2])
writer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(writer)
writer.drive(writer.Record(sys.argv[1], "s", create=True))
"""


def make_trial(number: int) -> FrozenTrial:
    trial = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"augment.threshold": 0.4, "model.patch_count": 3},
        distributions={
            "augment.threshold": optuna.distributions.FloatDistribution(0.1, 0.9),
            "model.patch_count": optuna.distributions.IntDistribution(2, 6),
        },
        user_attrs={"params": {"augment.threshold": 0.4}, "attempt": 1},
    )
    trial.number = number
    trial.datetime_start = datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=number)
    return trial


def make_report(epoch: int, value: float) -> dict[str, Any]:
    metrics = {OBJECTIVE: value, "seconds": 2.0}
    return {"epoch": epoch, "epochs": EPOCHS, OBJECTIVE: value, "metrics": metrics, "scores": {"t": [value] * 50}}


def drive(record: Record, trials: int = 100_000) -> None:
    """Two trials at a time, each told to the end; a line on stdout before each report is handed over."""
    for first in range(0, trials, 2):
        pair = (first, first + 1)
        for number in pair:
            record.start(make_trial(number))
        for epoch in range(1, EPOCHS + 1):
            for number in pair:
                print(number, epoch, flush=True)
                record.report(number, make_report(epoch, number + epoch / 10), 1000 * number + epoch)
            time.sleep(0.002)
        for number in pair:
            record.finish(number, TrialState.COMPLETE, number + EPOCHS / 10, {"stop_reason": "all epochs done"})


@pytest.mark.parametrize("lines", [3, 500])
def test_a_killed_writer_leaves_a_prefix_of_what_happened(tmp_path: Path, lines: int) -> None:
    url = f"sqlite:///{tmp_path / 'record.db'}"
    process = subprocess.Popen([sys.executable, "-c", WRITER, url, __file__], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline().split() for _ in range(lines)]
    # in mid-write: the thread is behind by up to a tenth of a second of events
    time.sleep(0.03)
    process.kill()
    told += [line.split() for line in process.communicate()[0].splitlines() if line.count(" ") == 1]

    record = Record(url, "s")
    trials = record.load()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    stored = [(trial.number, epoch) for trial in trials for epoch in trial.intermediate_values]
    handed = [(int(number), int(epoch)) for number, epoch in told]
    # in the order of the events, nothing is missing in the middle
    assert set(stored) <= set(handed[: len(stored) + 2])
    assert set(handed[: max(0, len(stored) - 2)]) <= set(stored)
    for trial in trials:
        assert list(reports_of(trial)) == sorted(trial.intermediate_values)
        assert sorted(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))
        if trial.intermediate_values:
            assert trial.user_attrs["scores"]["t"][0] == list(trial.intermediate_values.values())[-1]
        assert trial.params == {"augment.threshold": 0.4, "model.patch_count": 3}
        if trial.state == TrialState.COMPLETE:
            assert len(trial.intermediate_values) == EPOCHS
            assert trial.value == trial.intermediate_values[EPOCHS]
            assert trial.user_attrs["stop_reason"] == "all epochs done"
    if lines > 100:
        assert any(trial.state == TrialState.COMPLETE for trial in trials)
    # and the next launch goes on where it ends
    number = len(trials)
    record.start(make_trial(number))
    assert len(record.load()) == number + 1
    record.close()


def test_any_optuna_reads_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'record.db'}"
    record = Record(url, "s", create=True)
    drive(record, 4)
    record.start(make_trial(4))
    record.report(4, make_report(1, float("inf")), 1)
    record.close()
    study = optuna.load_study(study_name="s", storage=url)
    assert study.best_trial.number == 3
    assert study.best_value == pytest.approx(3.4)
    assert study.trials[4].intermediate_values == {1: float("inf")}
    assert study.trials[0].datetime_start == datetime.datetime(2026, 1, 1)
    assert study.trials[0].datetime_complete is not None
    assert study.trials[0].distributions == make_trial(0).distributions
    # and goes on with it
    study.add_trial(optuna.trial.create_trial(value=9.0))
    assert study.best_trial.number == 5


def test_a_batch_written_again_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'record.db'}"
    Record(url, "s", create=True).close()
    storage = open_database(url)
    study_id = storage.get_study_id_from_name("s")
    batch = Batch(set())
    batch.starts += [make_trial(0), make_trial(1)]
    batch.report(0, 1, 0.5, {"report:1": {"metrics": {}, "time": 1}})
    batch.report(0, 1, 0.6, {"report:1": {"metrics": {}, "time": 1}})
    batch.finish(1, TrialState.FAIL, None, {"stop_reason": "failed"})
    batch.study_attrs["qmc:x"] = 1
    # the answer to the first was lost
    first = record_rows.write(storage, study_id, {}, batch)
    before = [repr(trial) for trial in storage.get_all_trials(study_id)]
    assert record_rows.write(storage, study_id, {}, batch) == first
    assert [repr(trial) for trial in storage.get_all_trials(study_id)] == before
    assert storage.get_all_trials(study_id)[0].intermediate_values == {1: 0.6}
    # another driver's trial is no earlier try
    foreign = Batch(set())
    foreign.starts.append(make_trial(0))
    foreign.starts[0].datetime_start = datetime.datetime(2025, 1, 1)
    with pytest.raises(StudyError, match="another driver writes"):
        record_rows.write(storage, study_id, {}, foreign)
    late = Batch(set())
    late.starts.append(make_trial(2))
    with pytest.raises(StudyError, match="another driver writes"):
        record_rows.write(storage, study_id, {0: first[0]}, late)
    close_database(storage)


def test_a_locked_database_costs_the_search_no_wait(tmp_path: Path) -> None:
    file = tmp_path / "record.db"
    record = Record(f"sqlite:///{file}", "s", create=True)
    told: list[int] = []
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        drive(record, 20)
        record.then(lambda: told.append(1))
        record.keep_up()
        assert not record.settle(0.3)
        # MLflow hears nothing that the record does not hold
        assert told == []
        other.execute("COMMIT")
    other.close()
    record.flush()
    assert told == [1]
    assert [trial.state.name for trial in record.load()] == ["COMPLETE"] * 20
    record.close()


def test_a_failed_write_ends_the_search_and_tells_mlflow_no_more_of_its_trials(tmp_path: Path) -> None:
    record = Record(f"sqlite:///{tmp_path / 'record.db'}", "s", create=True)
    events: list[dict[str, Any]] = []

    class Sink:
        def put(self, event: dict[str, Any]) -> None:
            events.append(event)

    sink = AfterRecord(record, Sink())
    sink.put({"kind": "study", "trial": None})
    record.start(make_trial(0))
    sink.put({"kind": "trial_start", "trial": 0})
    record.flush()
    # a number that is not the next one: another driver must have written
    record.start(make_trial(7))
    sink.put({"kind": "trial_start", "trial": 7})
    sink.put({"kind": "study_end", "trial": None})
    assert record.settle(20)
    with pytest.raises(StudyError, match="trial 7 became 1 in the record"):
        record.keep_up()
    assert [event["kind"] for event in events] == ["study", "trial_start", "study_end"]
    with pytest.raises(StudyError, match="cannot be written"):
        record.close()


def test_what_is_called_after_the_record_comes_in_order(tmp_path: Path) -> None:
    record = Record(f"sqlite:///{tmp_path / 'record.db'}", "s", create=True)
    seen: list[int] = []
    here: list[int] = []
    for number in range(50):
        record.start(make_trial(number))
        record.then(lambda number=number: seen.append(number))
        if number % 10 == 9:
            record.flush()
            record.then(lambda: here.append(threading.get_ident()))
    record.close()
    assert seen == list(range(50))
    # with nothing to wait for it is called at once
    assert here == [threading.get_ident()] * 5
