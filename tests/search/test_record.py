"""The record's writer: what Optuna reads of it, a database that is away, and drivers killed in mid-write."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sctune.errors import StudyError
from sctune.report import OBJECTIVE, EpochReport
from sctune.search.study import database
from sctune.search.study.record import Record, reports_of
from sctune.search.study.record_sql import Attrs, EpochRow, Finish, RecordSql, Start, StudyAttrs, Write

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "augment.threshold": FloatDistribution(0.1, 0.9),
    "optim.lr": FloatDistribution(1e-5, 1e-2, log=True),
    "model.patch_count": IntDistribution(2, 6),
    "augment.kind": CategoricalDistribution(("saliencycut", "cutmix")),
}
EPOCHS, LIVE = 3, 2


def make_trial(number: int) -> FrozenTrial:
    params = {"augment.threshold": 0.1 + number % 70 / 100, "optim.lr": 1e-4, "model.patch_count": 4}
    trial = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params=params | {"augment.kind": "cutmix"},
        distributions=DISTRIBUTIONS,
        user_attrs={"params": params, "attempt": 1},
        system_attrs={"NSGAIISampler:generation": 0},
    )
    trial.number = number
    trial.datetime_start = datetime(2026, 7, 1, 12, number // 60 % 60, number % 60)
    return trial


def make_report(number: int, epoch: int) -> EpochReport:
    value = 0.5 + number % 100 / 1000 + epoch / 100
    return EpochReport(epoch, 99, {OBJECTIVE: value, "seconds": 2.0}, {"seed42": [value] * 50})


def url_in(folder: Path) -> str:
    return f"sqlite:///{folder / 'record.db'}"


def events() -> Iterator[tuple[str, int, int]]:
    """What a search of LIVE slots tells its record, without end: kind, trial, epoch."""
    first = 0
    while True:
        numbers = range(first, first + LIVE)
        yield from (("start", number, 0) for number in numbers)
        yield from (("report", number, epoch) for epoch in range(1, EPOCHS + 1) for number in numbers)
        yield from (("finish", number, EPOCHS) for number in numbers)
        first += LIVE


def tell(record: Record, event: tuple[str, int, int]) -> None:
    kind, number, epoch = event
    if kind == "start":
        record.start(make_trial(number))
    elif kind == "report":
        record.report(number, make_report(number, epoch), 1000 * epoch)
    else:
        value = make_report(number, epoch).value
        record.finish(number, TrialState.COMPLETE, value, {"stop_reason": "all epochs done"})


def found_in(trials: list[FrozenTrial]) -> set[tuple[str, int, int]]:
    """The events that a record shows; fails where a value came without what belongs to it."""
    found = set()
    for trial in trials:
        found.add(("start", trial.number, 0))
        assert trial.params == make_trial(trial.number).params
        assert trial.user_attrs["attempt"] == 1
        assert list(trial.intermediate_values) == list(reports_of(trial))
        for epoch, value in trial.intermediate_values.items():
            report = make_report(trial.number, epoch)
            assert value == report.value
            assert reports_of(trial)[epoch] == {"metrics": report.metrics, "time": 1000 * epoch}
            found.add(("report", trial.number, epoch))
        if trial.intermediate_values:
            latest = make_report(trial.number, max(trial.intermediate_values))
            assert trial.user_attrs["scores"] == latest.scores
        if trial.state == TrialState.COMPLETE:
            assert trial.value == trial.intermediate_values[EPOCHS]
            assert trial.user_attrs["stop_reason"] == "all epochs done"
            found.add(("finish", trial.number, EPOCHS))
    return found


def comparable(trial: FrozenTrial) -> str:
    """Everything of a trial but its id and the time of its end, as text, in which NaN equals NaN."""
    content = {key: value for key, value in vars(trial).items() if key not in ("_trial_id", "datetime_complete")}
    return json.dumps(content | {"ended": trial.datetime_complete is not None}, sort_keys=True, default=repr)


def test_optuna_reads_the_same_as_from_its_own_writes(tmp_path: Path) -> None:
    record = Record(url_in(tmp_path), "s", create=True)
    own = RDBStorage(f"sqlite:///{tmp_path / 'own.db'}")
    study = own.create_new_study([StudyDirection.MAXIMIZE], "s")
    values = {1: 0.25, 2: float("inf"), 3: float("nan")}
    ends = ((TrialState.COMPLETE, 0.75), (TrialState.PRUNED, float("-inf")), (TrialState.FAIL, None))
    for number, (state, value) in enumerate(ends):
        frozen = make_trial(number)
        record.start(frozen)
        record.set_attrs(number, {"attempt": 2, "text": "ü\u0000'\""})
        record.set_study_attrs({"qmc:x": number})
        for epoch, objective in values.items():
            # a report of an epoch is finite; the tables take any number
            attrs = {f"report:{epoch}": {"metrics": {"loss": 1.0}, "time": 5}}
            record._put(EpochRow(number, epoch, objective, attrs))
        record.finish(number, state, value, {"stop_reason": "x"})

        template = make_trial(number)
        template.system_attrs = {"NSGAIISampler:generation": 0}
        trial_id = own.create_new_trial(study, template)
        for key, attr in {"attempt": 2, "text": "ü\u0000'\""}.items():
            own.set_trial_user_attr(trial_id, key, attr)
        own.set_study_system_attr(study, "qmc:x", number)
        for epoch, objective in values.items():
            own.set_trial_user_attr(trial_id, f"report:{epoch}", {"metrics": {"loss": 1.0}, "time": 5})
            own.set_trial_intermediate_value(trial_id, epoch, objective)
        own.set_trial_user_attr(trial_id, "stop_reason", "x")
        own.set_trial_state_values(trial_id, state, None if value is None else [value])
    assert record.load_study_attrs() == own.get_study_system_attrs(study)
    record.close()
    read = optuna.load_study(study_name="s", storage=url_in(tmp_path))
    assert [*map(comparable, read.get_trials())] == [*map(comparable, own.get_all_trials(study))]
    # and goes on with it
    assert read.ask().number == 3


def batch() -> list[Write]:
    reports = [EpochRow(0, epoch, 0.1 * epoch, {f"report:{epoch}": epoch, "scores": [epoch]}) for epoch in (1, 2)]
    end = Finish(0, TrialState.PRUNED, 0.2, {"stop_reason": "x"}, datetime(2026, 7, 1, 13))
    late = [
        EpochRow(0, 3, 0.3, {"report:3": 3}),
        Finish(0, TrialState.FAIL, None, {"stop_reason": "y"}, datetime.now()),
    ]
    return [StudyAttrs({"a": 1}), Start(make_trial(0)), Attrs(0, {"attempt": 2}), *reports, end, *late]


def test_a_batch_whose_answer_was_lost_is_written_once(tmp_path: Path) -> None:
    record = Record(url_in(tmp_path), "s", create=True)
    storage = RDBStorage(url_in(tmp_path))
    study = storage.get_study_id_from_name("s")
    before: list[FrozenTrial] = []
    for rows in (RecordSql(storage.engine, study), RecordSql(storage.engine, study)):
        rows.write(batch())
        rows.write(batch())
        (trial,) = storage.get_all_trials(study)
        assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, 0.2, {1: 0.1, 2: 0.2})
        assert trial.user_attrs["stop_reason"] == "x"
        assert trial.user_attrs["scores"] == [2]
        assert "report:3" not in trial.user_attrs
        assert before in ([], [trial])
        before = [trial]
    record.close()


def test_a_batch_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    record = Record(url_in(tmp_path), "s", create=True)
    record.start(make_trial(0))
    record.flush()
    record.report(0, make_report(0, 1), 1000)
    record.start(make_trial(1))
    record.set_attrs(1, {"no": object()})
    with pytest.raises(StudyError, match="cannot be written: Object of type object is not JSON"):
        record.flush()
    with pytest.raises(StudyError, match="cannot be written"):
        record.check()
    again = Record(url_in(tmp_path), "s")
    assert found_in(again.load()) == {("start", 0, 0)}
    again.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of somebody else is told at once, not after half a minute."""
    monkeypatch.setattr(database, "engine_options", lambda _url: {"connect_args": {"timeout": 0.05}})


@pytest.fixture
def locked(tmp_path: Path, impatient: None) -> Iterator[tuple[Record, Callable[[], None]]]:
    """A record of which somebody else holds the database, and how to let go of it."""
    record = Record(url_in(tmp_path), "s", create=True)
    holder = sqlite3.connect(tmp_path / "record.db", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    yield record, holder.close
    holder.close()


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_database_that_is_away_is_waited_for_and_shown(locked: tuple[Record, Callable[[], None]]) -> None:
    record, unlock = locked
    assert record.trouble is None
    told: list[str] = []
    for event in islice(events(), 9):
        tell(record, event)
    record.then(lambda: told.append("in the record"))
    wait_for(lambda: record.trouble)
    assert record.trouble == "the record of s waits for its database: database is locked"
    with pytest.raises(StudyError, match=r"did not take its writes within 0 s: .* database is locked"):
        record.flush(timeout=0.2)
    record.check()
    assert told == []
    threading.Timer(0.3, unlock).start()
    trials = record.load()
    assert told == ["in the record"]
    assert record.trouble is None
    assert found_in(trials) == set(islice(events(), 9))
    record.close()


def test_a_stop_does_not_wait_for_a_database_that_is_away(
    tmp_path: Path, locked: tuple[Record, Callable[[], None]]
) -> None:
    record, unlock = locked
    record.start(make_trial(0))
    threading.Timer(0.3, record.hurry, [0.2]).start()
    with pytest.raises(StudyError, match="did not take its writes"):
        record.close()
    unlock()
    again = Record(url_in(tmp_path), "s")
    assert again.load() == []
    again.close()


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    record = Record(url_in(tmp_path), "s", create=True)
    engine = record._storage.engine
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    limit = {"pages": pages}
    # SQLite's own way to be full
    sqlalchemy.event.listen(
        engine, "begin", lambda begun: begun.exec_driver_sql(f"PRAGMA max_page_count={limit['pages']}").close()
    )
    for number in range(50):
        record.start(make_trial(number))
    wait_for(lambda: record.trouble)
    assert "full" in str(record.trouble)
    limit["pages"] = 10**6
    assert len(record.load()) == 50
    record.close()


def test_others_hear_of_an_event_after_the_record_has_it(tmp_path: Path) -> None:
    record = Record(url_in(tmp_path), "s", create=True)
    reader = RDBStorage(url_in(tmp_path))
    study = reader.get_study_id_from_name("s")
    told: list[tuple[str, int, int]] = []
    seen: list[int] = []
    for event in islice(events(), 3 * LIVE * (EPOCHS + 2)):
        tell(record, event)
        told.append(event)
        # in the record's thread, while this one goes on telling
        record.then(lambda: seen.append(len(found_in(reader.get_all_trials(study)))))
    record.close()
    assert len(seen) == len(told)
    assert all(stored >= before for before, stored in enumerate(seen, start=1))


CHILD = """
import sys
from itertools import islice
sys.path.insert(0, sys.argv[3])
from test_record import events, tell
from sctune.search.study.record import Record
record = Record(sys.argv[1], "s")
record.load()
for count, event in enumerate(islice(events(), int(sys.argv[2]), None)):
    tell(record, event)
    if count % 40 == 39:
        record.flush()
        print(count, flush=True)
"""


def test_a_killed_driver_leaves_a_prefix_of_its_events(tmp_path: Path) -> None:
    Record(url_in(tmp_path), "s", create=True).close()
    whole = 0
    for delay in (0.0, 0.013, 0.05):
        command = [sys.executable, "-c", CHILD, url_in(tmp_path), str(whole), str(Path(__file__).parent)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "39\n"
        time.sleep(delay)
        child.kill()
        # what it had flushed before it was killed must be there
        flushed = whole + 1 + max([39, *(int(line) for line in child.stdout)])
        child.wait()
        record = Record(url_in(tmp_path), "s")
        trials = record.load()
        found = found_in(trials)
        assert found == set(islice(events(), len(found)))
        assert len(found) >= flushed
        whole = len(found)
        record.close()
