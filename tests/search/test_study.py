"""The study on disk: names, manifest, lock, record and leaderboard."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from sctune.config import Task, load_profile
from sctune.errors import StudyError
from sctune.metrics.objective import AUROC
from sctune.report import OBJECTIVE, EpochReport
from sctune.search.space.definition import load_space
from sctune.search.study.leaderboard import best_row, leaderboard
from sctune.search.study.manifest import DataSpec, SchedulerSpec, SelectionSpec, StudyManifest
from sctune.search.study.record import Record, reports_of
from sctune.search.study.study import Study, list_studies, valid_name, write_json
from tests import builders


def make_manifest(name: str = "first", **changes: Any) -> StudyManifest:
    space = load_space("threshold_patch", load_profile("cpu"), {"optim.lr": 1e-3})
    fields: dict[str, Any] = {
        "name": name,
        "tasks": [Task(), Task(seed=43)],
        "sampler": "tpe",
        "scheduler": SchedulerSpec(name="asha", grace=2, factor=2),
        "trials": 12,
        "selection": SelectionSpec(mode="extra", reason="20 spare anomalies"),
        "data": DataSpec(name="elpv", digest="abc", counts={"normal": 3}, licence="CC BY-NC-SA 4.0"),
        "storage_path": "/store",
        "tracking_uri": "sqlite:////mlflow.db",
    }
    return builders.make_manifest(space, **fields | changes)


def make_trial(number: int, threshold: float = 0.4) -> FrozenTrial:
    """A running trial as the searcher hands it over; its number is given by order in the record."""
    trial = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"augment.threshold": threshold},
        distributions={"augment.threshold": optuna.distributions.FloatDistribution(0.1, 0.9)},
        user_attrs={"params": {"augment.threshold": threshold}, "attempt": 1},
        system_attrs={"NSGAIISampler:generation": 0},
    )
    trial.number = number
    trial.datetime_start = datetime.datetime(2026, 1, 1, 0, 0, number)
    return trial


def make_report(epoch: int, value: float) -> EpochReport:
    return EpochReport(epoch, 3, {OBJECTIVE: value, "seconds": 2.0}, {"seed42": [0.5, value]})


@pytest.mark.parametrize("name", ["a", "elpv-2026.1_b", "0", "_x", "a" * 80])
def test_plain_names_are_valid(name: str) -> None:
    assert valid_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../x", "a b", "a\n", "a" * 81, "ü", "/tmp/x"])
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    for call in (lambda: valid_name(name), lambda: Study.open(tmp_path, name)):
        with pytest.raises(StudyError, match="use letters"):
            call()
    with pytest.raises(StudyError, match="use letters"):
        Study.create(tmp_path / "root", make_manifest(name))
    assert not (tmp_path / "root").exists()


def test_created_study_opens_as_it_was(tmp_path: Path) -> None:
    manifest = make_manifest()
    Study.create(tmp_path / "root", manifest)
    again = Study.open(tmp_path / "root", "first")
    assert again.manifest == manifest
    assert again.manifest.trial_config().optim.lr == 1e-3
    assert again.manifest.build_space().base == manifest.trial_config()
    assert list_studies(tmp_path / "root") == ["first"]
    assert again.record.load() == []
    again.record.close()


def test_taken_and_missing_names_say_the_way_out(tmp_path: Path) -> None:
    Study.create(tmp_path, make_manifest())
    with pytest.raises(StudyError, match=r"exists in .*sctune resume first.*--name"):
        Study.create(tmp_path, make_manifest())
    with pytest.raises(StudyError, match=r"no study 'frist' in .*did you mean 'first'"):
        Study.open(tmp_path, "frist")


def test_a_failed_creation_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot open the record") as caught:
        Study.create(tmp_path, make_manifest(storage_url="nodialect://user:secret@host/db"))
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="cannot write the study folder"):
        Study.create(tmp_path / "file", make_manifest())


def test_budget_and_launches_are_saved(tmp_path: Path) -> None:
    study = Study.create(tmp_path, make_manifest())
    study.with_more_trials(30 - study.manifest.trials)
    study.add_launch("2026-01-01T00:00:00+00:00")
    study.end_launch("2026-01-01T00:01:00+00:00", "stopped")
    study.add_launch("2026-01-02T00:00:00+00:00")
    manifest = Study.open(tmp_path, "first").manifest
    assert manifest.trials == 30
    assert [(launch.ended, launch.reason) for launch in manifest.launches] == [
        ("2026-01-01T00:01:00+00:00", "stopped"),
        (None, None),
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 2}', '{"format_version": 1}'])
def test_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "study.json").write_text(text)
    with pytest.raises(StudyError, match=r"study\.json"):
        Study.open(tmp_path, "first")


def test_unknown_manifest_key_is_refused(tmp_path: Path) -> None:
    study = Study.create(tmp_path, make_manifest())
    tree = json.loads((study.folder / "study.json").read_text()) | {"extra": 1}
    write_json(study.folder / "study.json", tree)
    with pytest.raises(StudyError, match="damaged: extra"):
        Study.open(tmp_path, "first")


def test_lock_refuses_a_second_driver_in_another_process_and_survives_a_kill(tmp_path: Path) -> None:
    study = Study.create(tmp_path, make_manifest())
    code = (
        "import sys, pathlib; from sctune.search.study.study import Study\n"
        "with Study.open(pathlib.Path(sys.argv[1]), 'first').lock():\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(StudyError, match=f"run by process {holder.pid} .*end that process"), study.lock():
        pass
    holder.kill()
    holder.communicate()
    with study.lock():
        assert study.driver() is not None
    assert study.driver() is None


def test_record_keeps_what_was_written(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'record.db'}"
    record = Record(url, "s", create=True)
    for number in range(3):
        record.start(make_trial(number, 0.1 * (number + 1)))
    record.report(1, make_report(1, 0.6), 1000)
    record.report(1, make_report(2, 0.7), 2000)
    record.report(1, make_report(2, 0.75), 2000)
    record.finish(1, TrialState.PRUNED, 0.75, {"stop_reason": "stopped by asha at epoch 2"})
    record.finish(1, TrialState.FAIL, None, {})
    record.finish(2, TrialState.FAIL, None, {"failure": {"kind": "oom", "message": "m"}})
    record.set_study_attrs({"qmc:x": 3})
    record.close()

    again = Record(url, "s")
    trials = again.load()
    assert [trial.number for trial in trials] == [0, 1, 2]
    assert [trial.state.name for trial in trials] == ["RUNNING", "PRUNED", "FAIL"]
    assert trials[1].intermediate_values == {1: 0.6, 2: 0.75}
    assert trials[1].value == 0.75
    assert trials[1].user_attrs["scores"] == {"seed42": [0.5, 0.75]}
    assert {epoch: report["time"] for epoch, report in reports_of(trials[1]).items()} == {1: 1000, 2: 2000}
    assert trials[0].system_attrs == {"NSGAIISampler:generation": 0}
    assert trials[0].datetime_start == datetime.datetime(2026, 1, 1)
    assert again.load_study_attrs()["qmc:x"] == 3
    again.close()


def test_write_errors_come_up_at_the_next_flush(tmp_path: Path) -> None:
    record = Record(f"sqlite:///{tmp_path / 'record.db'}", "s", create=True)
    record.start(make_trial(5))
    with pytest.raises(StudyError, match="trial 5 became 0 in the record"):
        record.flush()
    with pytest.raises(StudyError, match="cannot be written"):
        record.close()


def test_a_start_told_again_is_written_once_and_a_foreign_one_refused(tmp_path: Path) -> None:
    record = Record(f"sqlite:///{tmp_path / 'record.db'}", "s", create=True)
    record.start(make_trial(0))
    record.start(make_trial(0))
    assert len(record.load()) == 1
    foreign = make_trial(0)
    foreign.datetime_start = datetime.datetime(2025, 1, 1)
    record.start(foreign)
    with pytest.raises(StudyError, match="another driver writes"):
        record.close()


def test_two_studies_share_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    for name in ("a", "b"):
        Study.create(tmp_path / "root", make_manifest(name, storage_url=url))
    first = Study.open(tmp_path / "root", "a")
    first.record.start(make_trial(0))
    first.record.close()
    second = Study.open(tmp_path / "root", "b")
    second.record.start(make_trial(0))
    assert [trial.number for trial in second.record.load()] == [0]
    second.record.delete()
    second.record.close()
    with pytest.raises(StudyError, match="holds no study 'b'"):
        Record(url, "b")
    with pytest.raises(StudyError, match="holds a study 'a' already"):
        Record(url, "a", create=True)


def test_leaderboard_puts_full_runs_first(tmp_path: Path) -> None:
    record = Record(f"sqlite:///{tmp_path / 'record.db'}", "s", create=True)
    ends = [("PRUNED", 0.99, 1), ("COMPLETE", 0.7, 3), ("COMPLETE", 0.8, 3), ("FAIL", None, 1), ("COMPLETE", 0.8, 3)]
    for number, (state, value, epochs) in enumerate(ends):
        record.start(make_trial(number))
        for epoch in range(1, epochs + 1):
            record.report(number, make_report(epoch, value or 0.1), 0)
        record.finish(number, TrialState[state], value, {"stop_reason": "x"})
    record.start(make_trial(5))
    rows = leaderboard(record.load(), AUROC)
    assert [row.number for row in rows] == [2, 4, 1, 0, 5, 3]
    assert rows[0].values == {1: 0.8, 2: 0.8, 3: 0.8}
    assert rows[0].seconds == 6.0
    best = best_row(reversed(rows), AUROC)
    assert best is not None
    assert best.number == 2
    assert best_row((row for row in rows if row.state != "COMPLETE"), AUROC) is None
    record.close()
